"""How unusual a value is among harmless prompts: `-log p`, on one scale for readers whose scores mean different things.

Read off the quantiles of held-out values of harmless prompts. Beyond the highest of them the tail is taken to be
exponential, so that what is far out still differs from what is farther out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

GRID = 64  # quantiles
TAIL = 0.05  # the share of values that the exponential tail is fitted to


@dataclass(frozen=True)
class Scale:
    """A map that rises: lines between knots, and a line with `slope` beyond the last one."""

    knots: NDArray[np.float64]  # values, `[GRID]`
    heights: NDArray[np.float64]  # `-log p` there, `[GRID]`
    slope: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Scale:
        """The scale of harmless values `[n]`."""
        levels = np.linspace(0.0, 1.0 - TAIL, GRID)
        knots = np.quantile(values, levels)
        beyond = values[values > knots[-1]] - knots[-1]
        mean = float(beyond.mean()) if len(beyond) else 0.0
        # Values that are all alike have no tail: anything above them is as unusual as can be told.
        spread = max(mean, 1e-3 * float(values.std()), 1e-6)
        return cls(knots, -np.log1p(-levels), 1.0 / spread)

    def __call__(self, value: float) -> float:
        """`-log p` of a value; NaN of what is no number."""
        knots, heights = self._lists
        if not value < knots[-1]:
            return heights[-1] + self.slope * (value - knots[-1])
        at = bisect_right(knots, value) - 1
        if at < 0:
            return heights[0]
        return (heights[at + 1] - heights[at]) / (knots[at + 1] - knots[at]) * (value - knots[at]) + heights[at]

    @cached_property
    def _lists(self) -> tuple[list[float], list[float]]:
        return self.knots.tolist(), self.heights.tolist()  # of one value, numpy takes ten times as long

    def each(self, values: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
        """`-log p` of each of several values `[n]`; NaN of what is no number."""
        within = np.interp(values, self.knots, self.heights)
        beyond = self.heights[-1] + self.slope * (values - self.knots[-1])
        return np.where(values <= self.knots[-1], within, beyond)


def most_unusual(scales: Sequence[Scale], values: Sequence[float]) -> float:
    """The highest `-log p` of values, each on its own scale; NaN where one is no number."""
    return float(np.max([scale(value) for scale, value in zip(scales, values, strict=True)]))


def unusual_together(scales: Sequence[Scale], values: Sequence[float]) -> float:
    """The sum of `-log p` of values, each on its own scale (after Fisher); NaN where one is no number."""
    return float(np.sum([scale(value) for scale, value in zip(scales, values, strict=True)]))


def logistic(value: float, slope: float, shift: float) -> float:
    """`sigmoid(slope * value + shift)`, in [0, 1]."""
    exponent = slope * value + shift
    if exponent >= 0:
        return 1.0 / (1.0 + math.exp(-exponent))
    grown = math.exp(exponent)
    return grown / (1.0 + grown)
