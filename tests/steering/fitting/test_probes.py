"""The probes of a conversation: what a few hard negatives weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steering.fitting.probes import fit_gaussians, fit_highest, fit_windows, weights_of
from steering.fitting.spans import UNKNOWN

ROWS, HARD = 400, 12


def rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, labels, and which rows are hard.

    The words, the first two features, tell the label of most rows and of the hard ones the opposite; the meaning, the
    other three, tells all, less clearly.
    """
    generator = torch.Generator().manual_seed(seed)
    y, hard = torch.arange(ROWS) % 2, torch.arange(ROWS) < HARD
    sign = 2.0 * y - 1
    words, meaning = torch.where(hard, -3.0, 3.0) * sign, 1.5 * sign
    return torch.stack([words] * 2 + [meaning] * 3, 1) + torch.randn(ROWS, 5, generator=generator), y, hard


def test_hard_negatives_weigh_their_share_of_each_class() -> None:
    _, y, hard = rows(0)
    weights = weights_of(y, hard)
    for label in (0, 1):
        assert float(weights[y == label].sum()) == pytest.approx(0.5)
        assert float(weights[(y == label) & hard].sum()) == pytest.approx(0.15)
    without = weights_of(y, torch.zeros(ROWS, dtype=torch.bool))
    assert without == pytest.approx(torch.full((ROWS,), 1 / ROWS))
    # More than their share are not held down, and a class of hard rows alone is a class.
    assert weights_of(y, torch.arange(ROWS) < ROWS // 2) == pytest.approx(torch.full((ROWS,), 1 / ROWS))
    assert weights_of(y, y == 1) == pytest.approx(torch.full((ROWS,), 1 / ROWS))


@pytest.mark.parametrize("where", ["ends", "windows", "answers"])
def test_a_few_hard_negatives_teach_the_meaning(where: str) -> None:
    def right(hard: Tensor) -> float:
        weights = weights_of(y, hard)
        if where == "windows":
            probe = fit_highest([*x[:, None]], [*y[:, None]], y, hard)
        else:
            probe = fit_gaussians(x, y, weights) if where == "ends" else fit_windows([*x[:, None]], y, weights)
        fresh, labels, few = rows(1)
        return float(((probe(fresh) > 0) == labels)[few].float().mean())

    x, y, hard = rows(0)
    assert right(torch.zeros_like(hard)) <= 0.5
    assert right(hard) >= 0.8


def test_of_harmful_prompts_in_surroundings_the_highest_windows_teach() -> None:
    """In a surrounding harm looks another way: a probe of prompts alone tells it less well."""
    generator = torch.Generator().manual_seed(2)

    def windows(harmful: bool, padded: bool) -> Tensor:
        found = torch.randn(12 if padded else 3, 6, generator=generator)
        if harmful:  # three of a padded prompt's are
            found[:3, :2] += torch.tensor([1.2, 4.0] if padded else [4.0, 0.0])
        return found

    y, padded = torch.arange(400) % 2, torch.arange(400) // 2 % 2 == 1
    rows = [windows(bool(label), bool(pad)) for label, pad in zip(y, padded, strict=True)]
    none = torch.zeros(400, dtype=torch.bool)
    known = [torch.full((len(of),), UNKNOWN if a and b else int(a)) for of, a, b in zip(rows, y, padded, strict=True)]
    fresh = [windows(bool(label), padded=True) for label in y]

    def told_apart(rounds: int) -> float:
        probe = fit_highest(rows, known, y, none, rounds=rounds)
        highest = torch.stack([probe(each).max() for each in fresh])
        return float((highest[y == 1] > highest[y == 0].quantile(0.95)).float().mean())

    assert told_apart(0) <= 0.5
    assert told_apart(2) >= 0.9
