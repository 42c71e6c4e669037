"""From contrast pairs to a guard: collect states once, choose a layer, fit prober and head, calibrate, sweep eps.

Every step is a stage on disk (`steering/fitting/stages.py`). The result is a function of data, settings and model:
a run that was killed and started again ends with the same bundle, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from models.backbone import Backbone
from steering.bundle import save_bundle
from steering.errors import FitError
from steering.fitting.choices import SELECTS
from steering.fitting.confound import words_auroc
from steering.fitting.dataset import Dataset
from steering.fitting.enough import check_enough
from steering.fitting.figures import (
    by_category,
    calibrated_thresholds,
    default_threshold,
    sizes,
    unmeasured_warning,
    validation_figures,
    warnings,
)
from steering.fitting.items import Item
from steering.fitting.layers import auroc, choose_layer
from steering.fitting.lengths import Parts, find_long, length_warnings, without_long
from steering.fitting.stages import Chunks, Stages, load_json, load_state
from steering.fitting.steps import Settings, Steps, load_head
from steering.fitting.sweep import EPS_SWEEP, EpsPoint, choose_eps, refusal_ids
from steering.fitting.verdict import headline, swapped_warning, words_warning
from steering.guard import Guard
from steering.manifest import LayerFigures, Manifest, ModelBinding
from steering.prober import Prober
from steering.versions import versions


@dataclass(frozen=True)
class Fitted:
    """A guard, and what its report is made of."""

    guard: Guard
    report: Mapping[str, Any]
    folders: Mapping[str, Path]  # of the stages
    dataset: Dataset


@dataclass(frozen=True)
class _Finished:
    """The stages of a fit, all of them finished: what the bundle and the report are made of."""

    backbone: Backbone
    dataset: Dataset
    data_hash: str
    settings: Settings
    layers: Sequence[int]  # that the prober reads
    figures: Sequence[LayerFigures]
    folders: Mapping[str, Path]

    @property
    def scores(self) -> Tensor:
        """Scores of all prompts `[N]`."""
        return load_state(self.folders["prober"] / "scores.safetensors")["scores"]

    @property
    def states(self) -> Tensor:
        """States of all prompts at the first of the prober's layers `[N, d]`."""
        collected = self.settings.layers or range(self.backbone.info.num_layers + 1)
        return Chunks(self.folders["states"]).column(list(collected).index(self.layers[0]))

    @property
    def sweep(self) -> list[EpsPoint]:
        """The answers at each eps, counted."""
        return [EpsPoint(**row) for row in load_json(self.folders["eps"] / "sweep.json")]


def fit(
    backbones: Sequence[Backbone],
    parts: Parts,
    settings: Settings,
    out: Path,
    work: Path,
    progress: Progress,
) -> Fitted:
    """Fit a guard and write its bundle to `out`; stages are kept under `work`. One backbone per device, all the same.

    Rows that pass the context are left out, which the report says. Raises FitError where the data is too small, or
    the guard worth less than `settings.require_tpr`.
    """
    stages = Stages(work)
    parts, left_out = _within_context(stages, backbones[0], parts, settings, progress)
    dataset = Dataset.of(parts)
    layers = _layers(settings, backbones[0].info.num_layers)
    rate = check_enough(parts, settings.target_fpr)
    finished = _run(stages, Steps(backbones, dataset, settings, progress), backbones[0], dataset, settings, layers)
    guard = _guard(finished, rate)
    report = {**_report(finished, guard.manifest, rate), "stages": stages.summary}
    report["warnings"] += length_warnings(left_out, backbones[0].info.context_length)
    if guard.manifest.recall < settings.require_tpr:
        raise FitError(
            f"the guard catches {guard.manifest.recall:.1%} of harm at its default threshold, and --require-tpr asks "
            f"for {settings.require_tpr:.1%}: no bundle is written to {out}"
        )
    save_bundle(out, guard.manifest, guard.prober, guard.head, guard.calibration)
    return Fitted(guard, report, finished.folders, dataset)


def _within_context(
    stages: Stages, backbone: Backbone, parts: Parts, settings: Settings, progress: Progress
) -> tuple[Parts, list[Item]]:
    """The rows that have room for a refusal, and those that have not."""
    room = max(len(refusal_ids(backbone, refusal)) for refusal in settings.refusals)
    binding = ModelBinding.of(backbone.info).model_dump(exclude={"name", "revision"})
    inputs = {"model": binding, "data": Dataset.of(parts).digest(), "context": backbone.info.context_length - room}
    task = progress.add_task("lengths", total=sum(map(len, parts.values())))
    folder = stages.run(
        "lengths",
        inputs,
        lambda to: find_long(backbone, parts, room, to, lambda count: progress.advance(task, count)),
    )
    return without_long(parts, folder)


def _layers(settings: Settings, num_layers: int) -> list[int]:
    """The layers whose states are collected. Raises FitError where the model lacks one that was asked for."""
    for given in settings.layers:
        if not 0 <= given <= num_layers:
            raise FitError(f"layer {given} is not one of 0..{num_layers}")
    return list(settings.layers) or list(range(num_layers + 1))


def _run(
    stages: Stages, steps: Steps, backbone: Backbone, dataset: Dataset, settings: Settings, layers: Sequence[int]
) -> _Finished:
    """Run the stages that are not there yet; a stage depends on what its inputs name, and on nothing else."""
    data_hash = dataset.digest()
    base = {"model": ModelBinding.of(backbone.info).model_dump(exclude={"name", "revision"}), "data": data_hash}
    # What the numbers of a stage depend on but that no model's description holds.
    machine = {"torch": torch.__version__, "device": backbone.info.device.type}

    begun = stages.run("data", base, steps.begin)
    states = stages.run("states", {**base, **machine, "layers": layers}, lambda to: steps.states(layers, to))
    fitting = {"hidden": settings.prober_hidden, "optimisation": asdict(settings.prober), "seed": settings.seed}
    table = stages.run("layers", {"states": states.name, **fitting}, lambda to: steps.layers(layers, states, to))
    figures = [LayerFigures(**row) for row in load_json(table / "layers.json")]
    chosen = settings.layers or (choose_layer(figures, settings.select),)
    places = [layers.index(layer) for layer in chosen]
    probed = stages.run(
        "prober", {"states": states.name, "layers": chosen, **fitting}, lambda to: steps.prober(states, places, to)
    )
    forcing = {**base, **machine, "refusals": settings.refusals, "count": settings.head_prompts}
    forced = stages.run("refusals", forcing, steps.refusals)
    heading = {"refusals": forced.name, "rank": settings.rank, "optimisation": asdict(settings.head)}
    headed = stages.run("head", heading, lambda to: steps.head(forced, to))
    sweeping = {"head": headed.name, "count": settings.sweep_prompts, "eps": EPS_SWEEP}
    swept = stages.run("eps", sweeping, lambda to: steps.sweep(headed, to))
    folders = {
        "data": begun, "states": states, "layers": table, "prober": probed, "refusals": forced, "head": headed,
        "eps": swept,
    }  # fmt: skip
    return _Finished(backbone, dataset, data_hash, settings, chosen, figures, folders)


def _guard(finished: _Finished, rate: float) -> Guard:
    """The guard of the finished stages, with a default threshold for a false-positive rate of `rate`."""
    backbone, dataset, settings = finished.backbone, finished.dataset, finished.settings
    prober = Prober(backbone.info.hidden_size * len(finished.layers), settings.prober_hidden)
    prober.load_state_dict(load_state(finished.folders["prober"] / "prober.safetensors"))
    scores = finished.scores
    safe_scores = scores[dataset.places("calibration", 0)]
    thresholds = calibrated_thresholds(safe_scores)
    default = default_threshold(thresholds, rate)
    manifest = Manifest(
        model=ModelBinding.of(backbone.info),
        layer=max((row for row in finished.figures if row.layer in finished.layers), key=lambda row: row.sas).layer,
        probe_layers=list(finished.layers) if len(finished.layers) > 1 else [],
        prober_hidden=settings.prober_hidden,
        head_rank=settings.rank,
        layers=list(finished.figures),
        thresholds=thresholds,
        threshold=default,
        eps=choose_eps(finished.sweep),
        refusal=settings.refusals[0],
        validation=validation_figures(dataset, scores, default),
        data_hash=finished.data_hash,
        data_size=len(dataset.questions),
        versions=versions(),
        date=load_json(finished.folders["data"] / "begun.json")["date"],
        tensors_hash="",
    )
    head = load_head(finished.folders["head"], backbone, settings.rank)
    calibration = {"safe_scores": safe_scores, "fitted_rows": dataset.fingerprints()}
    return Guard(manifest, prober, head, calibration).to(backbone.info.device)


def _report(finished: _Finished, manifest: Manifest, rate: float) -> dict[str, Any]:
    """The figures of the report."""
    dataset, figures, scores = finished.dataset, finished.figures, finished.scores
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
        "sweep": [asdict(point) for point in finished.sweep],
        "losses": {name: load_json(finished.folders[name] / "losses.json") for name in ("prober", "head")},
        "words_auroc": by_words,
        "warnings": [
            *swapped_warning(dataset, finished.states),
            *words_warning(by_guard, by_words),
            *warnings(dataset, scores, figures, finished.layers, rate, by_words),
            *unmeasured_warning(categories),
        ],
    }
