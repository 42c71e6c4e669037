"""The finished stages of a fit, and what is made of them: the guard, and the figures of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.backbone import Backbone
from steering.fitting.categories import Kinds, left_out_warning
from steering.fitting.choices import SELECTS
from steering.fitting.confound import words_auroc
from steering.fitting.dataset import Dataset
from steering.fitting.figures import (
    by_category,
    calibrated_thresholds,
    default_threshold,
    sizes,
    unmeasured_warning,
    validation_figures,
    warnings,
)
from steering.fitting.layers import auroc, choose_layer
from steering.fitting.reading import Reading, by_surrounding
from steering.fitting.stages import Chunks, load_json
from steering.fitting.steps import Settings, load_head
from steering.fitting.sweep import EpsPoint, choose_eps
from steering.fitting.verdict import headline, swapped_warning, words_warning
from steering.guard import Guard
from steering.manifest import Manifest, ModelBinding, format_of
from steering.specs import LayerFigures
from steering.versions import versions


@dataclass(frozen=True)
class Finished:
    """The stages of a fit, all of them finished: what the bundle and the report are made of."""

    backbone: Backbone
    dataset: Dataset
    data_hash: str
    settings: Settings
    figures: Sequence[LayerFigures]
    folders: Mapping[str, Path]
    reading: Reading
    kinds: Kinds

    @property
    def layer(self) -> int:
        """The layer that is read; of several, the one with the highest SAS."""
        return max((row for row in self.figures if row.layer in self.reading.layers), key=lambda row: row.sas).layer

    @property
    def states(self) -> Tensor:
        """States of all prompts at that layer `[N, d]`."""
        return Chunks(self.folders["states"]).column([row.layer for row in self.figures].index(self.layer))

    @property
    def sweep(self) -> list[EpsPoint]:
        """The answers at each eps, counted."""
        return [EpsPoint(**row) for row in load_json(self.folders["eps"] / "sweep.json")]


def guard_of(finished: Finished, rate: float) -> Guard:
    """The guard of the finished stages, with a default threshold for a false-positive rate of `rate`."""
    backbone, dataset, settings = finished.backbone, finished.dataset, finished.settings
    reading = finished.reading
    thresholds = calibrated_thresholds(reading.safe_scores)
    default = default_threshold(thresholds, rate)
    whole = reading.spec is not None
    manifest = Manifest(
        format_version=format_of(reading.spec, None, reading.category_spec),
        model=ModelBinding.of(backbone.info),
        layer=finished.layer,
        probe_layers=list(reading.layers) if len(reading.layers) > 1 else [],
        probe_position="conversation" if whole else "last_prompt_token",
        conversation=reading.spec,
        categories=reading.category_spec,
        prober_hidden=0 if whole else settings.prober_hidden,
        head_rank=settings.rank,
        layers=list(finished.figures),
        thresholds=thresholds,
        threshold=default,
        eps=choose_eps(finished.sweep, lowest=finished.settings.head_kind == "sparing"),
        refusal=settings.refusals[0],
        validation=validation_figures(dataset, reading.scores, default),
        data_hash=finished.data_hash,
        data_size=len(dataset.questions),
        versions=versions(),
        date=load_json(finished.folders["data"] / "begun.json")["date"],
        tensors_hash="",
    )
    head = load_head(finished.folders["head"], backbone, settings.rank)
    calibration = {"safe_scores": reading.safe_scores, "fitted_rows": dataset.fingerprints()}
    return Guard(manifest, reading.reader, head, calibration, None, reading.category_reader).to(backbone.info.device)


def report_of(finished: Finished, manifest: Manifest, rate: float) -> dict[str, Any]:
    """The figures of the report."""
    dataset, figures, scores = finished.dataset, finished.figures, finished.reading.scores
    by_words = words_auroc(dataset)
    places = dataset.places("calibration")
    by_guard = auroc(scores[places], dataset.labels[places])
    categories = by_category(dataset, scores, manifest.threshold)
    return {
        "headline": headline(manifest, rate),
        "manifest": manifest.model_dump(),
        "default_fpr": rate,
        "sizes": sizes(dataset),
        "pairs": len(dataset.twins("train")[0]),
        "choices": {select: choose_layer(figures, select) for select in SELECTS.values()},
        "chosen_by": "given" if finished.settings.layers else finished.settings.select,
        "categories": categories,
        "surroundings": by_surrounding(finished.reading, dataset, manifest.threshold, rate),
        "sweep": [asdict(point) for point in finished.sweep],
        "losses": {name: load_json(finished.folders[name] / "losses.json") for name in ("prober", "head")},
        "words_auroc": by_words,
        "warnings": [
            *swapped_warning(dataset, finished.states),
            *words_warning(by_guard, by_words),
            *warnings(dataset, scores, figures, finished.reading.layers, rate, by_words),
            *unmeasured_warning(categories),
            *left_out_warning(finished.kinds),
        ],
    }
