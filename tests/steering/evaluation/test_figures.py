"""Figures against hand-computed ones, intervals against scipy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, bootstrap

from steering.evaluation.figures import RESAMPLES, SEED, auroc, kappa, paired, rate_of, tpr_at

SHARES = st.lists(st.booleans(), min_size=2, max_size=40)


def test_a_rate_by_hand() -> None:
    found = rate_of([True, True, True, False, False, False, False, False, False, False])
    assert found is not None
    assert (found.n, found.hits, found.rate) == (10, 3, 0.3)
    assert rate_of([]) is None


def test_the_interval_is_the_one_of_scipy() -> None:
    values = [True] * 13 + [False] * 27
    expected = bootstrap(
        (np.array(values, dtype=float),),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        confidence_level=0.95,
        batch=500,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    found = rate_of(values)
    assert found is not None
    assert (found.low, found.high) == (expected.low, expected.high)
    # And near what theory says: 0.325 +- 1.96 sqrt(p (1 - p) / n).
    half = 1.96 * math.sqrt(0.325 * 0.675 / 40)
    assert found.low == pytest.approx(0.325 - half, abs=0.03)
    assert found.high == pytest.approx(0.325 + half, abs=0.03)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_where_all_rows_agree_the_interval_is_exact_and_not_empty(n: int) -> None:
    none, every = rate_of([False] * n), rate_of([True] * n)
    assert none is not None
    assert every is not None
    # Clopper and Pearson by the quantiles of the beta distribution.
    assert none.low == 0
    assert none.high == pytest.approx(beta.ppf(0.975, 1, n))
    assert every.high == 1
    assert every.low == pytest.approx(beta.ppf(0.025, n, 1))


@given(SHARES)
def test_an_interval_holds_its_rate(values: list[bool]) -> None:
    found = rate_of(values)
    assert found is not None
    assert 0 <= found.low <= found.rate <= found.high <= 1


def test_auroc_and_tpr_by_hand() -> None:
    toxic, safe = [0.9, 0.8, 0.3], [0.1, 0.2, 0.4, 0.85]
    # Pairs in which the toxic score is above: 4 + 3 + 2 of 12.
    assert auroc(toxic, safe) == pytest.approx(9 / 12)
    assert auroc([0.5], [0.5]) == 0.5
    assert auroc([], safe) is None
    assert tpr_at(toxic, safe, 0.25) == pytest.approx(2 / 3)  # one false alarm allowed: above 0.4
    assert tpr_at(toxic, safe, 0.5) == pytest.approx(1.0)  # two allowed: above 0.2
    assert tpr_at(toxic, safe, 0.24) is None  # four safe rows cannot tell 24 % from 0
    assert tpr_at(toxic, safe, 1.0) == 1.0


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.sampled_from([0.1, 0.25, 0.5]),
)
def test_tpr_never_uses_more_false_alarms_than_it_may(toxic: list[float], safe: list[float], fpr: float) -> None:
    found = tpr_at(toxic, safe, fpr)
    allowed = math.floor(len(safe) * fpr)
    if allowed < 1:
        assert found is None
        return
    # The slow way: try every threshold.
    best = max(
        sum(score > limit for score in toxic) / len(toxic)
        for limit in [-1.0, *safe, *toxic]
        if sum(score > limit for score in safe) <= allowed
    )
    assert found == pytest.approx(best)


def test_kappa_by_hand() -> None:
    # 20 answers: both yes 8, both no 6, first alone 4, second alone 2. p_o = 0.7, p_e = 0.6 * 0.5 + 0.4 * 0.5 = 0.5.
    first = ["yes"] * 8 + ["no"] * 6 + ["yes"] * 4 + ["no"] * 2
    second = ["yes"] * 8 + ["no"] * 6 + ["no"] * 4 + ["yes"] * 2
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(["yes"] * 5, ["yes"] * 5) is None
    assert kappa([], []) is None


def test_a_paired_comparison_by_hand() -> None:
    # 8 rows lost, 2 won of 20: McNemar's exact p = 2 * P(X <= 2), X ~ B(10, 1/2) = 2 * 56 / 1024.
    first = [True] * 8 + [False] * 2 + [True] * 10
    second = [False] * 8 + [True] * 2 + [True] * 10
    found = paired(first, second)
    assert found is not None
    assert (found.only_first, found.only_second, found.n) == (8, 2, 20)
    assert found.difference == pytest.approx(-0.3)
    assert found.p == pytest.approx(112 / 1024)
    assert found.low < -0.3 < found.high <= 0.1
    assert paired([], []) is None


@pytest.mark.parametrize(("first", "second", "sign"), [(False, False, 0), (False, True, 1), (True, False, -1)])
def test_a_difference_that_never_varies_has_an_interval(first: bool, second: bool, sign: int) -> None:
    found = paired([first] * 30, [second] * 30)
    assert found is not None
    assert found.difference == sign
    assert found.low < found.high
    assert found.low <= sign <= found.high
    assert all(-1 <= edge <= 1 for edge in (found.low, found.high))
    assert (found.p == 1.0) == (sign == 0)


@given(SHARES)
def test_the_p_value_falls_as_rows_change_to_one_side(values: list[bool]) -> None:
    ps = [paired([True] * k + values, [False] * k + values) for k in (1, 4, 8)]
    assert all(a is not None and b is not None and a.p >= b.p for a, b in pairwise(ps))
