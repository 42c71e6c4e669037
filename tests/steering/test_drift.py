"""The drift figures against scipy, and against traffic whose drift is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy import stats

from models import demo
from steering.drift import (
    ALARM_PSI,
    MIN_SAMPLES,
    WINDOW,
    Drift,
    Reference,
    Scores,
    bin_edges,
    ks_p_value,
    ks_statistic,
    population_stability_index,
)

SCORES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).map(np.array)
SAFE: Scores = load_file(Path(demo.GUARD) / "guard.safetensors")["calibration.safe_scores"].astype(np.float64)


@pytest.mark.filterwarnings("ignore:divide by zero")
@given(SCORES, SCORES)
def test_the_distance_is_scipys(first: Scores, second: Scores) -> None:
    assert ks_statistic(first, second) == pytest.approx(
        stats.ks_2samp(first, second, method="asymp").statistic, abs=1e-12
    )


@given(st.floats(0, 1), st.integers(100, 5000), st.integers(100, 500))
def test_the_p_value_is_scipys_limit_distribution(statistic: float, n: int, m: int) -> None:
    wanted = stats.kstwobign.sf(statistic * (n * m / (n + m)) ** 0.5)
    assert ks_p_value(statistic, n, m) == pytest.approx(wanted, abs=1e-9)


def test_the_p_value_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=550), rng.normal(0.15, 1, size=500)
    exact = stats.ks_2samp(first, second, method="exact")
    assert ks_p_value(ks_statistic(first, second), 550, 500) == pytest.approx(exact.pvalue, rel=0.2)


@given(SCORES, SCORES)
def test_psi_is_never_negative_and_nought_for_the_same(first: Scores, second: Scores) -> None:
    edges = bin_edges(first)
    assert population_stability_index(first, second, edges) >= 0
    assert population_stability_index(first, first, edges) == 0
    assert np.isfinite(population_stability_index(first, second, edges))


def test_psi_of_shares_counted_by_hand() -> None:
    reference, live = np.array([0.1] * 50 + [0.9] * 50), np.array([0.1] * 25 + [0.9] * 75)
    p, q = np.array([50.5, 50.5]) / 101, np.array([25.5, 75.5]) / 101
    by_hand = ((q - p) * np.log(q / p)).sum()
    assert population_stability_index(reference, live, np.array([0.5])) == pytest.approx(by_hand)


def test_bins_hold_equal_shares_and_equal_scores_share_a_bin() -> None:
    edges = bin_edges(np.arange(1000) / 1000)
    assert len(edges) == 9
    assert np.diff(edges) == pytest.approx(0.0999)
    assert len(bin_edges(np.zeros(1000))) == 1
    assert len(bin_edges(np.empty(0))) == 0


def test_only_scores_below_the_threshold_are_compared_with() -> None:
    reference = Reference([0.1] * 100 + [0.5, 0.7], 0.5)
    assert len(reference.scores) == 100
    assert reference.usable
    assert not Reference([0.1] * (MIN_SAMPLES - 1) + [0.9] * 50, 0.5).usable


def test_an_alarm_takes_a_large_shift_that_is_no_chance_and_enough_scores() -> None:
    drift = Drift(psi=ALARM_PSI, ks=0.3, p_value=1e-6, window=MIN_SAMPLES)
    assert drift.alarm
    for quiet in ({"psi": 0.099}, {"p_value": 1e-4}, {"window": MIN_SAMPLES - 1}):
        assert not Drift(**{**vars(drift), **quiet}).alarm


@pytest.mark.parametrize("kept", [550, 3000])
def test_a_shift_of_half_a_deviation_is_told_from_none(kept: int) -> None:
    """Of the logits of the bundled guard's harmless scores, whole windows, and `kept` of the scores in the bundle."""
    logits = np.log(SAFE) - np.log1p(-SAFE)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        reference = Reference(rng.choice(SAFE, kept, replace=False), 0.5)
        same, shifted = (1 / (1 + np.exp(-rng.choice(logits, WINDOW) - shift)) for shift in (0.0, logits.std() / 2))
        assert not reference.compare(same[same < 0.5]).alarm
        assert reference.compare(shifted[shifted < 0.5]).alarm
