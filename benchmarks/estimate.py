"""Medians, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` per cent of all are not above."""
    return float(np.percentile(np.asarray(values, float), share))


@dataclass(frozen=True)
class Estimate:
    """A median over rounds, and its 95 % interval by the bootstrap."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Estimate:
        """Of one value per round."""
        found = np.asarray(values, float)
        assert len(found), "no values"
        drawn = np.random.default_rng(seed).integers(len(found), size=(RESAMPLES, len(found)))
        low, high = np.percentile(np.median(found[drawn], axis=1), [2.5, 97.5])
        return cls(float(np.median(found)), float(low), float(high), len(found))

    @classmethod
    def of_ratios(cls, above: Sequence[float], below: Sequence[float]) -> Estimate:
        """Of the ratio within each round."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    def show(self, digits: int = 2) -> str:
        """The median and its interval."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"
