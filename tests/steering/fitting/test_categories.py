"""Which categories a fit tells apart, and how: on states in which each has a direction of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.data.questions import Question
from steering.fitting.categories import HARMLESS, UNKNOWN, Kinds, at_last_tokens, left_out_warning
from steering.fitting.dataset import Dataset
from steering.fitting.items import Item

WIDTH = 12
KINDS = ("arson", "fraud", "spying")


def dataset(categories: list[str], *, hard: bool = False) -> Dataset:
    """A pair of each of these categories, in every part."""
    items = [
        Item(f"{n}", Question(f"toxic {n}"), Question(f"safe {n}"), category, hard=hard)
        for n, category in enumerate(categories)
    ]
    return Dataset.of({"train": items, "validation": items, "calibration": items})


def states(data: Dataset, kinds: Kinds, seed: int = 0) -> Tensor:
    """Harm has one direction, each category another one; other harm has none."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(data.questions), WIDTH, generator=generator)
    for place, kind in enumerate(kinds.of.tolist()):
        if data.labels[place] == 1:
            x[place, -1] += 6
        if kind in range(len(kinds.names)):
            x[place, kind] += 5
    return x


def fitted(categories: list[str]) -> tuple[Dataset, Kinds]:
    data = dataset(categories)
    return data, Kinds.found_in(data)


def test_rows_say_which_categories_there_are() -> None:
    names = [*["fraud"] * 9, *["arson"] * 8, *["rare"] * 3, *["VLSafe"] * 9, *[""] * 2, "unsafe", "x" * 65]
    data, kinds = fitted(names)
    assert kinds.names == ("arson", "fraud")
    assert kinds.other
    assert sorted(kinds.left_out) == ["rare", "unsafe", "x" * 65]
    told = {(name, int(kinds.of[place])) for place, name in zip(data.places("train", 1), names, strict=True)}
    assert told == {("arson", 0), ("fraud", 1), *((name, 2) for name in {*names} - {"arson", "fraud"})}
    assert {int(kinds.of[place]) for place in data.places("train", 0)} == {HARMLESS}
    (warning,) = left_out_warning(kinds)
    assert "rare" in warning
    assert "VLSafe" not in warning


def test_other_harm_needs_enough_rows_and_hard_negatives_are_of_no_known_category() -> None:
    _, kinds = fitted([*KINDS * 8, "", ""])
    assert not kinds.other
    assert int((kinds.of == UNKNOWN).sum()) == 3 * 2
    assert not Kinds.found_in(dataset([*KINDS * 8], hard=True)).other


@pytest.mark.parametrize("names", [["arson"] * 30, [*KINDS], ["VLSafe", "condition"] * 20])
def test_fewer_than_two_are_not_told_apart(names: list[str]) -> None:
    assert not fitted(names)[1]


def test_categories_are_told_from_each_other_and_from_harmless_prompts() -> None:
    data, kinds = fitted([*KINDS * 40, *[""] * 40])
    fresh = [*data.places("validation"), *data.places("calibration")]
    held_out = torch.tensor([data.parts[place] == "calibration" for place in fresh])
    x = states(data, kinds)
    told = at_last_tokens(data, kinds, x)
    read = told.reader.read(x[fresh, None]).double().numpy()
    assert [each.name for each in told.spec.categories] == [*KINDS]
    assert told.spec.figures["macro_auroc"] > 0.98
    assert told.spec.figures["macro_auroc_harmless"] > 0.99
    for number, spec in enumerate(told.spec.categories):
        assert spec.samples == 40
        assert spec.threshold >= 0.5
        scores = np.array([told.reader.scores(row[None])[number].score for row in read])
        own = (kinds.of[fresh] == number).numpy()
        others = (kinds.of[fresh] >= 0).numpy() & ~own & held_out.numpy()
        assert (scores[others] >= spec.threshold).mean() <= 0.05
        assert (scores[own & held_out.numpy()] >= spec.threshold).mean() == pytest.approx(spec.recall)
        assert spec.recall > 0.8
