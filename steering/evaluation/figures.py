"""Rates with intervals, what a detector is worth, agreement of judges, paired comparison: counts in, figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import bdtr, betaincinv  # scipy.stats takes a second to import, which comparing runs would wait for

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 500  # resamples in memory at a time
SEED = 0
FEW_SCORES = 10  # of either side, from which two AUROCs are compared

Scores = tuple[Sequence[float], Sequence[float]]  # of toxic rows and of others


@dataclass(frozen=True)
class Rate:
    """A share of `n` rows and its 95 % interval."""

    n: int
    hits: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.hits / self.n


def rate_of(values: Sequence[bool]) -> Rate | None:
    """The share that is true, with the percentile bootstrap interval over rows; None of nothing.

    Where all rows agree, resampling them says nothing, and the exact interval of Clopper and Pearson stands instead.
    """
    n, hits = len(values), sum(values)
    if n == 0:
        return None
    if hits in (0, n):
        return Rate(n, hits, *_exact(hits, n))
    low, high = _bootstrap(np.asarray(values, dtype=float))
    return Rate(n, hits, low, high)


def _exact(hits: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, from quantiles of the beta distribution."""
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(hits, n - hits + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
    return float(low), float(high)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the mean, as `scipy.stats.bootstrap` computes it."""
    rng = np.random.default_rng(SEED)
    n = len(values)
    sizes = [min(BATCH, RESAMPLES - done) for done in range(0, RESAMPLES, BATCH)]
    means = np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _sign_test(only_first: int, only_second: int) -> float:
    """McNemar's exact test: how likely so uneven a split is where both sides are as likely."""
    tail = bdtr(min(only_first, only_second), only_first + only_second, 0.5)
    return float(min(1.0, 2 * tail))


def auroc(toxic: Sequence[float], safe: Sequence[float]) -> float | None:
    """How often a toxic score is above a safe one, ties counted half; None where either side is empty."""
    if not toxic or not safe:
        return None
    return float(_ranks(toxic, safe)[0].mean())


def _ranks(toxic: Sequence[float], safe: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Of each toxic score the share of safe ones below it, of each safe score that of toxic ones above; ties half."""
    t, s = np.asarray(toxic, dtype=float), np.asarray(safe, dtype=float)
    below, up_to = (np.searchsorted(np.sort(s), t, side) for side in ("left", "right"))
    under, not_over = (np.searchsorted(np.sort(t), s, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(s)), 1 - (under + not_over) / (2 * len(t))


def tpr_at(toxic: Sequence[float], safe: Sequence[float], fpr: float) -> float | None:
    """Largest share of toxic scores above a threshold that at most `fpr` of the safe ones pass.

    None where there are fewer than `1 / fpr` safe scores, which cannot tell such a rate from 0.
    """
    allowed = math.floor(len(safe) * fpr + 1e-9)
    if allowed < 1 or not toxic:
        return None
    limit = sorted(safe, reverse=True)[allowed] if allowed < len(safe) else -math.inf
    return sum(score > limit for score in toxic) / len(toxic)


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa of two judges on the same outputs; None where it is not defined (both always say the same)."""
    if not first or len({*first, *second}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(list(first), list(second)))


@dataclass(frozen=True)
class Paired:
    """Second minus first, over the rows that both have: the difference, its interval, and the p-value of a test."""

    n: int
    first: float
    second: float
    low: float
    high: float
    p: float
    only_first: int = 0  # rows true in the first alone, where rows are true or not
    only_second: int = 0

    @property
    def difference(self) -> float:
        """How much larger the second rate is."""
        return self.second - self.first


def paired_auroc(first: Scores, second: Scores) -> Paired | None:
    """Compare what two detectors' scores of the same rows are worth, by DeLong's test; None where rows are too few.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves" (1988).
    """
    if min(map(len, first)) < FEW_SCORES:
        return None
    mine, other = _ranks(*first), _ranks(*second)
    values = [float(ranks[0].mean()) for ranks in (mine, other)]
    difference = values[1] - values[0]
    error = math.sqrt(sum(float((b - a).var(ddof=1)) / len(a) for a, b in zip(mine, other, strict=True)))
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    edge = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return Paired(sum(map(len, first)), values[0], values[1], difference - edge, difference + edge, p)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number: of all that are below 0.05 then, one is by chance in 1 of 20 comparisons."""
    corrected, highest = [0.0] * len(ps), 0.0
    for done, place in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(1.0, ps[place] * (len(ps) - done)))
        corrected[place] = highest
    return corrected


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired | None:
    """Compare two rates on the same rows, by McNemar's exact test; None of nothing."""
    if not first:
        return None
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    only_first, only_second = int((differences < 0).sum()), int((differences > 0).sum())
    discordant = only_first + only_second
    if np.all(differences == differences[0]):
        # As with a single rate: what never varies gets the exact interval, of the share of rows that differ.
        signs = (float(differences[0]),) if discordant else (-1.0, 1.0)
        edges = [sign * edge for sign in signs for edge in _exact(discordant, len(differences))]
        low, high = min(edges), max(edges)
    else:
        low, high = _bootstrap(differences)
    return Paired(
        n=len(differences),
        first=sum(first) / len(first),
        second=sum(second) / len(second),
        low=low,
        high=high,
        only_first=only_first,
        only_second=only_second,
        p=_sign_test(only_first, only_second) if discordant else 1.0,
    )
