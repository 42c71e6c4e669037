"""Rates with intervals, what a detector is worth, agreement of judges, paired comparison: counts in, figures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

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
        exact = binomtest(hits, n).proportion_ci(CONFIDENCE, "exact")
        return Rate(n, hits, float(exact.low), float(exact.high))
    low, high = _bootstrap(np.asarray(values, dtype=float))
    return Rate(n, hits, low, high)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the mean."""
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


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
        spread = binomtest(discordant, len(differences)).proportion_ci(CONFIDENCE, "exact")
        signs = (float(differences[0]),) if discordant else (-1.0, 1.0)
        edges = [sign * float(edge) for sign in signs for edge in (spread.low, spread.high)]
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
        p=binomtest(only_second, discordant, 0.5).pvalue if discordant else 1.0,
    )
