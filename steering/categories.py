"""The reader of categories: which kinds of harm a prompt is of, told from the states that the guard reads anyway.

At a turn's end each category has a number that is linear in the states: how much likelier the turn is of it than
harmless, as Gaussians with one covariance say. What speaks for a category is that against harmless prompts and all
other categories together. The highest end counts, so that harm of an earlier turn is named as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.policy import CategoryScore, is_flagged
from steering.readers import project

Array = NDArray[np.float64]
LEAST = 1e-13  # of what the likeliest is, what all others are together
LOWEST = -700.0  # of a logistic's argument: e to the 700 is a number


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
        return project(states, self.weight) + self.bias

    def raw(self, notes: Array) -> Array:
        """What speaks for each category, `[C]`, at the end that says most for it; `notes` `[E, width]` of the ends."""
        found: Array = against_all(notes)[:, : len(self.names)].max(0)
        return found

    def scores(self, notes: Array) -> tuple[CategoryScore, ...]:
        """The score in [0, 1] of each category, of what was read at the turn ends of a prompt `[E, width]`."""
        slopes, shifts = self._logistics
        found = 1.0 / (1.0 + np.exp(-np.maximum(slopes * self.raw(notes) + shifts, LOWEST)))
        return tuple(
            CategoryScore(name, score, is_flagged(score, threshold))
            for name, score, threshold in zip(self.names, found.tolist(), self.thresholds, strict=True)
        )

    def calibrate(self, slopes: Sequence[float], shifts: Sequence[float], thresholds: Sequence[float]) -> None:
        """Set what makes scores of the categories' log-odds, and the scores from which they count."""
        self.__dict__.pop("_logistics", None)
        self.slopes.copy_(torch.tensor(slopes))
        self.shifts.copy_(torch.tensor(shifts))
        self.thresholds = tuple(thresholds)

    @cached_property
    def _logistics(self) -> tuple[Array, Array]:
        return self.slopes.cpu().numpy(), self.shifts.cpu().numpy()


def against_all(notes: Array) -> Array:
    """Log-odds of each category against all others and harmless, `[E, K]`, of those against harmless alone `[E, K]`.

    Beyond 30 they are told no more finely.
    """
    highest = np.maximum(notes.max(1, keepdims=True), 0.0)  # harmless has 0
    likely = np.exp(notes - highest)
    others = likely.sum(1, keepdims=True) + np.exp(-highest) - likely
    found: Array = notes - highest - np.log(np.maximum(others, LEAST))
    return found
