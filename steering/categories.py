"""The reader of categories: which kinds of harm a prompt is of, told from the states that the guard reads anyway.

At a turn's end each category has a number that is linear in the states: how much likelier the turn is of it than
harmless, as Gaussians with one covariance say. What speaks for a category is that against harmless prompts and all
other categories together. The highest end counts, so that harm of an earlier turn is named as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.policy import CategoryScore, is_flagged

Array = NDArray[np.float64]


class CategoryReader(nn.Module):
    """Reads as many numbers of a token as there are `names`, and with `other` one more: harm of none of them.

    `thresholds`: of each category, the score from which on a flagged prompt counts as of it.
    """

    weight: Tensor
    bias: Tensor
    slopes: Tensor
    shifts: Tensor

    def __init__(self, inputs: int, names: Sequence[str], thresholds: Sequence[float], *, other: bool) -> None:
        super().__init__()
        self.names = tuple(names)
        self.thresholds = tuple(thresholds)
        self.width = len(self.names) + other
        self.register_buffer("weight", torch.zeros(self.width, inputs))
        self.register_buffer("bias", torch.zeros(self.width))
        self.register_buffer("slopes", torch.ones(len(self.names), dtype=torch.float64))
        self.register_buffer("shifts", torch.zeros(len(self.names), dtype=torch.float64))

    def read(self, states: Tensor) -> Tensor:
        """`[N, width]`: how much likelier each token is of each category than harmless, of states `[N, layers, d]`."""
        return states.flatten(1).float() @ self.weight.T + self.bias

    def raw(self, notes: Array) -> Array:
        """What speaks for each category, `[C]`, at the end that says most for it; `notes` `[E, width]` of the ends."""
        found: Array = against_all(notes)[:, : len(self.names)].max(0)
        return found

    def scores(self, notes: Array) -> tuple[CategoryScore, ...]:
        """The score in [0, 1] of each category, of what was read at the turn ends of a prompt `[E, width]`."""
        exponents = self.slopes.cpu().numpy() * self.raw(notes) + self.shifts.cpu().numpy()
        with np.errstate(over="ignore"):  # a score of 0
            found = 1.0 / (1.0 + np.exp(-exponents))
        return tuple(
            CategoryScore(name, score, is_flagged(score, threshold))
            for name, score, threshold in zip(self.names, found.tolist(), self.thresholds, strict=True)
        )


def against_all(notes: Array) -> Array:
    """Log-odds of each category against all others and harmless, `[E, K]`, of those against harmless alone `[E, K]`."""
    count = notes.shape[1]
    known = np.concatenate([notes, np.zeros((len(notes), 1))], axis=1)
    others = np.broadcast_to(known[:, None], (len(notes), count, count + 1)).copy()
    others[:, range(count), range(count)] = -np.inf
    with np.errstate(invalid="ignore"):  # what is no number stays none
        found: Array = notes - np.logaddexp.reduce(others, axis=2)
    return found
