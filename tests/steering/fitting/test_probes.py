"""The probes of a conversation: what a few hard negatives weigh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steering.fitting.probes import fit_ends, fit_windows, weights_of

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


@pytest.mark.parametrize("where", ["ends", "windows"])
def test_a_few_hard_negatives_teach_the_meaning(where: str) -> None:
    def right(hard: Tensor) -> float:
        weights = weights_of(y, hard)
        probe = fit_ends(x, y, weights) if where == "ends" else fit_windows([*x[:, None]], y, weights)
        fresh, labels, few = rows(1)
        return float(((probe(fresh) > 0) == labels)[few].float().mean())

    x, y, hard = rows(0)
    assert right(torch.zeros_like(hard)) <= 0.5
    assert right(hard) >= 0.8
