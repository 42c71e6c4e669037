"""Whether live scores still look like those that a guard was calibrated on. Plain functions of scores, on the CPU.

Calibration keeps the scores of harmless prompts alone, while live traffic holds harmful ones too. What can be compared
is what lies below a policy's threshold on both sides: there nearly all of the traffic is harmless, as the prober sees
it. What moves above the threshold is not drift here; it is the refusal rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

WINDOW = 500  # live scores that are compared
LOOK_EVERY = 50  # new scores between two comparisons
BINS = 10
MIN_SAMPLES = 100  # on either side; below, no alarm is raised
ALARM_PSI = 0.1  # a shift that matters: the usual lower bound of "moderate"
ALARM_P_VALUE = 1e-5  # a shift that is there: looks come often, and none of them may cry wolf

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How far `window` live scores are from the calibration's."""

    psi: float
    ks: float
    p_value: float
    window: int

    @property
    def alarm(self) -> bool:
        """Whether the shift is both large enough to matter and too unlikely to be chance."""
        return self.window >= MIN_SAMPLES and self.psi >= ALARM_PSI and self.p_value < ALARM_P_VALUE


class Reference:
    """The calibration scores below a threshold, made ready to be compared with live ones."""

    def __init__(self, scores: Sequence[float] | Scores, threshold: float) -> None:
        found = np.sort(np.asarray(scores, dtype=np.float64))
        self.threshold = threshold
        self.scores: Scores = found[found < threshold]
        self.edges = bin_edges(self.scores)

    @property
    def usable(self) -> bool:
        """Whether there are enough scores to compare with."""
        return len(self.scores) >= MIN_SAMPLES

    def compare(self, live: Sequence[float] | Scores) -> Drift:
        """Compare live scores, all of them below the threshold. At least one is needed."""
        found = np.asarray(live, dtype=np.float64)
        statistic = ks_statistic(self.scores, found)
        return Drift(
            psi=population_stability_index(self.scores, found, self.edges),
            ks=statistic,
            p_value=ks_p_value(statistic, len(self.scores), len(found)),
            window=len(found),
        )


def bin_edges(reference: Scores, bins: int = BINS) -> Scores:
    """Inner edges of bins with equal shares of the reference `[n]`; equal scores make fewer bins."""
    if not len(reference):
        return np.empty(0)
    return np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))


def population_stability_index(reference: Scores, live: Scores, edges: Scores) -> float:
    """PSI: the sum over bins of (q - p) ln(q / p), p and q the shares of reference `[n]` and live `[m]`.

    Half a score is added to each bin, so that an empty one has a share.
    """
    p, q = (_shares(scores, edges) for scores in (reference, live))
    return float(np.sum((q - p) * np.log(q / p)))


def _shares(scores: Scores, edges: Scores) -> Scores:
    places = np.searchsorted(edges, scores, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1).astype(np.float64) + 0.5
    shares: Scores = counts / counts.sum()
    return shares


def ks_statistic(first: Scores, second: Scores) -> float:
    """Kolmogorov and Smirnov's D: the largest distance of two empirical distribution functions; scores `[n]`, `[m]`."""
    first, second = np.sort(first), np.sort(second)
    at = np.concatenate([first, second])
    shares = [np.searchsorted(scores, at, side="right") / len(scores) for scores in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_p_value(statistic: float, n: int, m: int) -> float:
    """How likely a D as large is by chance, for samples of n and m scores: the limit distribution, for 100 and more."""
    x = statistic * sqrt(n * m / (n + m))
    if x < 0.2:  # the series below converges slowly there, and is 1 to twelve digits
        return 1.0
    terms = [(-1) ** (k - 1) * exp(-2 * k * k * x * x) for k in range(1, 101)]
    return float(min(1.0, max(0.0, 2 * sum(terms))))
