"""Rates with intervals, what a detector is worth, agreement of judges, paired comparison: counts in, figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, betaincinv  # scipy.stats takes a second to import, which comparing runs would wait for

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 500  # resamples in memory at a time
SEED = 0


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
    from sklearn.metrics import roc_auc_score  # slow to import, and comparing runs needs none of it

    return float(roc_auc_score([1] * len(toxic) + [0] * len(safe), [*toxic, *safe]))


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
    """Second minus first, over the rows that both have: the difference, its interval, and McNemar's exact test."""

    n: int
    first: float
    second: float
    low: float
    high: float
    only_first: int  # rows true in the first alone
    only_second: int
    p: float

    @property
    def difference(self) -> float:
        """How much larger the second rate is."""
        return self.second - self.first


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired | None:
    """Compare two rates on the same rows; None of nothing."""
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
