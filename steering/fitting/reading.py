"""The guard's reader, fitted and calibrated: of the last token alone, or of whole conversations with it as baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.layout import Layout
from steering.calibration import conformal_threshold
from steering.categories import CategoryReader
from steering.files import digest
from steering.fitting.calibrate import calibrate, make_cells, scores
from steering.fitting.categories import CategoriesRead, FreshRows, Kinds, calibrated
from steering.fitting.conversation import STRIDE, WORDS, ConversationSteps
from steering.fitting.dataset import Dataset
from steering.fitting.figures import share_flagged
from steering.fitting.own_words import MOST_TOKENS
from steering.fitting.probes import HARD_SHARE, ROUNDS, SHRINKAGE, Linear
from steering.fitting.stages import Stages, load_json, load_state
from steering.fitting.steps import Settings
from steering.fitting.surround import ALONE, Row, surrounded
from steering.prober import Prober
from steering.readers import MANY, WINDOW, Conversation, LastToken
from steering.specs import CategoriesSpec, CellSpec, ConversationSpec

LEVEL = 0.5  # the share of the mean of a long prompt's windows that is taken off the highest


@dataclass(frozen=True)
class Reading:
    """A fitted reader, and what it makes of the fit's own prompts."""

    reader: LastToken | Conversation
    layers: Sequence[int]  # that are read
    scores: Tensor  # of all prompts alone `[N]`; NaN where they were fitted on and not scored
    safe_scores: Tensor  # of harmless calibration prompts, in every surrounding `[n]`
    rows: Sequence[Row] = ()  # calibration rows, where surroundings were read
    row_scores: Tensor | None = None  # `[R]`
    last_scores: Tensor | None = None  # of the prober at their last tokens `[R]`
    categories: CategoriesRead | None = None

    @property
    def spec(self) -> ConversationSpec | None:
        """What the manifest says of the reader."""
        if isinstance(self.reader, LastToken):
            return None
        reader = self.reader
        return ConversationSpec(
            window=reader.window,
            cells=[CellSpec(**cell._asdict()) for cell in reader.cells],
            together=reader.together,
            spoken=reader.spoken,
            level=reader.level,
        )

    @property
    def category_reader(self) -> CategoryReader | None:
        """The reader of categories, if there is one."""
        return None if self.categories is None else self.categories.reader

    @property
    def category_spec(self) -> CategoriesSpec | None:
        """What the manifest says of the reader of categories."""
        return None if self.categories is None else self.categories.spec


def read_last(
    dataset: Dataset,
    prober: Prober,
    prober_scores: Tensor,
    layers: Sequence[int],
    categories: CategoriesRead | None = None,
) -> Reading:
    """The paper's reader, whose prober has scored all prompts."""
    safe_scores = prober_scores[dataset.places("calibration", 0)]
    return Reading(LastToken(prober), layers, prober_scores, safe_scores, categories=categories)


def read_conversations(
    stages: Stages,
    inputs: Mapping[str, Any],  # what its stages depend on, beside what is named here
    dataset: Dataset,
    steps: ConversationSteps,
    layers: Sequence[int],
    settings: Settings,
    prober: Prober,
    prober_at: tuple[int, Path],  # its layer, and the folder of its stage
    kinds: Kinds,
) -> Reading:
    """Fit and calibrate a reader of whole conversations."""
    own = _own_words(stages, inputs, steps, settings)
    train = surrounded(dataset, ("train",), settings.seed, own)
    fresh = surrounded(dataset, ("validation", "calibration"), settings.seed, own)
    about = {**inputs, "layers": list(layers), "rows": _digest(train), "stride": STRIDE, "spoken": True, "known": True}
    collected = stages.run("conversations", about, lambda to: steps.collect(train, to))
    hard = dataset.hard(dataset.places("train")).nonzero().flatten().tolist()
    fitting = {
        "conversations": collected.name, "shrinkage": SHRINKAGE, "rounds": ROUNDS, "hard": [HARD_SHARE, *hard]
    }  # fmt: skip
    fitted = stages.run("probes", fitting, lambda to: steps.fit(train, collected, to))
    probes = load_state(fitted / "probes.safetensors")
    reader = _with_probes(probes, [])
    reading: dict[str, Any] = {
        "probes": fitted.name, "prober": prober_at[1].name, "rows": _digest(fresh), "columns": 9, "level": [LEVEL, MANY]
    }  # fmt: skip
    linear = None
    if kinds:
        telling = {"conversations": collected.name, "kinds": [kinds.names, kinds.of.tolist()], "shrinkage": SHRINKAGE}
        told = stages.run("categories", telling, lambda to: steps.fit_categories(train, kinds, collected, to))
        linear = Linear(**load_state(told / "categories.safetensors"))
        reading |= {"categories": told.name}
    categories = None if linear is None else kinds.reader(linear)
    read = stages.run("read", reading, lambda to: steps.read(fresh, reader, categories, prober, prober_at[0], to))
    found = load_state(read / "raw.safetensors")
    calibrated_reader = _calibrated(probes, found["raw"], dataset, fresh, layers)
    if linear is None:
        return calibrated_reader
    rows = _fresh_rows(found["categories"], kinds, dataset, fresh)
    return replace(calibrated_reader, categories=calibrated(kinds, linear, rows))


def _own_words(stages: Stages, inputs: Mapping[str, Any], steps: ConversationSteps, settings: Settings) -> list[str]:
    """What the model says in a user's place."""
    seed, count = settings.seed, settings.own_words
    saying = {**inputs, "seed": seed, "texts": count, "tokens": MOST_TOKENS}
    found: list[str] = load_json(stages.run("words", saying, lambda to: steps.words(seed, count, to)) / WORDS)
    return found


def _fresh_rows(raw: Tensor, kinds: Kinds, dataset: Dataset, rows: Sequence[Row]) -> FreshRows:
    """What categories are calibrated on; `raw` `[R, categories]`."""
    return FreshRows(
        raw=raw.numpy(),
        kinds=kinds.of[[row.place for row in rows]],
        held_out=torch.tensor([dataset.parts[row.place] == "calibration" for row in rows]),
        alone=torch.tensor([row.surrounding == ALONE for row in rows]),
    )


def _calibrated(
    probes: Mapping[str, Tensor], raw: Tensor, dataset: Dataset, rows: Sequence[Row], layers: Sequence[int]
) -> Reading:
    """`raw` `[R, 9]`, see `ConversationSteps.read`."""
    labels = dataset.labels[[row.place for row in rows]]
    layouts = [_of_kind(*kind) for kind in raw[:, 3:7].int().tolist()]
    reader = _with_probes(probes, make_cells([layouts[at] for at in (labels == 0).nonzero().flatten().tolist()]))
    numbers = raw[:, [0, 7, 8] if reader.apart else [0, 1]].numpy()
    calibrate(reader, numbers, layouts, labels)
    found = scores(reader, numbers, layouts)
    alone = torch.full((len(dataset.questions),), torch.nan, dtype=found.dtype)
    for row, score in zip(rows, found.tolist(), strict=True):
        if row.surrounding == ALONE:
            alone[row.place] = score
    fresh = torch.tensor([dataset.parts[row.place] == "calibration" for row in rows])
    return Reading(
        reader=reader,
        layers=layers,
        scores=alone,
        safe_scores=found[fresh & (labels == 0)].float(),
        rows=[row for row, kept in zip(rows, fresh.tolist(), strict=True) if kept],
        row_scores=found[fresh],
        last_scores=torch.sigmoid(raw[fresh, 2]),
    )


def _of_kind(tokens: int, has_image: int, told: int, answered: int) -> Layout:
    """A layout of which no more is known than what its cell depends on."""
    return Layout(tokens, range(1 + answered), (), bool(has_image), told=((0, tokens),) * told)


def _with_probes(probes: Mapping[str, Tensor], cells: Sequence[Any]) -> Conversation:
    reader = Conversation(probes["weight"].shape[1], cells, WINDOW, together=True, spoken=True, level=LEVEL)
    reader.weight.copy_(probes["weight"])
    reader.bias.copy_(probes["bias"])
    return reader


def _digest(rows: Sequence[Row]) -> str:
    return digest(repr([(row.place, row.surrounding, row.question.transcript) for row in rows]).encode())


def by_surrounding(reading: Reading, dataset: Dataset, threshold: float, rate: float) -> list[dict[str, Any]]:
    """How many fresh prompts each surrounding has, and the shares flagged by this reader and by the last token's.

    The last token's threshold is what its prober would be served with: calibrated on harmless prompts alone.
    """
    if reading.row_scores is None or reading.last_scores is None:
        return []
    labels = dataset.labels[[row.place for row in reading.rows]]
    kinds = np.array([row.surrounding for row in reading.rows])
    plain = reading.last_scores[torch.from_numpy(kinds == ALONE) & (labels == 0)].float()
    last = conformal_threshold(plain, rate)
    table = []
    for kind in dict.fromkeys([ALONE, *sorted(kinds)]):
        row: dict[str, Any] = {"surrounding": kind}
        for label, name in ((1, "toxic"), (0, "safe")):
            at = torch.from_numpy(kinds == kind) & (labels == label)
            row[name] = int(at.sum())
            if row[name]:
                row[f"{name}_flagged"] = share_flagged(reading.row_scores[at], threshold)
                if last is not None:
                    row[f"{name}_flagged_by_last"] = share_flagged(reading.last_scores[at], last)
        table.append(row)
    return table
