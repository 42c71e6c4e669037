from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.calibration import conformal_threshold, fit_temperature
from steering.fitting.enough import samples_needed


@pytest.mark.parametrize(("target", "needed"), [(0.001, 999), (0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1)])
def test_a_threshold_needs_this_many_samples(target: float, needed: int) -> None:
    assert samples_needed(target) == needed
    scores = torch.rand(needed)
    assert conformal_threshold(scores, target) is not None
    assert conformal_threshold(scores[1:], target) is None


@pytest.mark.parametrize(("target", "n"), [(0.01, 99), (0.01, 250), (0.05, 400), (0.001, 1500)])
def test_fresh_safe_prompts_are_flagged_no_more_often_than_promised(target: float, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    fresh = torch.rand(200_000, generator=generator) ** 8  # crowded at 0, as a good prober's safe scores are
    rates = []
    for _ in range(200):
        threshold = conformal_threshold(torch.rand(n, generator=generator) ** 8, target)
        assert threshold is not None
        rates.append(float((fresh >= threshold).float().mean()))
    mean, error = sum(rates) / len(rates), torch.tensor(rates).std() / len(rates) ** 0.5
    assert mean <= target + 2 * float(error)
    assert mean >= target - 1 / (n + 1) - 3 * float(error)  # and it is no more cautious than it must be


def test_the_mean_rate_of_the_one_percent_threshold_is_at_most_one_percent() -> None:
    generator = torch.Generator().manual_seed(7)
    fresh = torch.randn(100_000, generator=generator).sigmoid()
    rates = []
    for _ in range(200):
        threshold = conformal_threshold(torch.randn(500, generator=generator).sigmoid(), 0.01)
        assert threshold is not None
        rates.append(float((fresh >= threshold).float().mean()))
    assert sum(rates) / 200 <= 0.01


def test_ties_are_counted_as_flagged() -> None:
    scores = torch.cat([torch.zeros(90), torch.full((10,), 0.7)])
    threshold = conformal_threshold(scores, 0.05)
    assert threshold is not None
    assert threshold > 0.7
    assert not bool((torch.tensor([0.7]) >= threshold).any())


def test_safe_scores_of_one_leave_nothing_to_promise() -> None:
    assert conformal_threshold(torch.ones(200), 0.05) is None


@settings(deadline=None, max_examples=20)
@given(st.floats(0.4, 6.0), st.integers(0, 1000))
def test_the_temperature_is_found_again(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(20_000, generator=generator)
    labels = (torch.rand(20_000, generator=generator) < torch.sigmoid(logits)).long()
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.08)


def test_perfect_separation_does_not_promise_certainty() -> None:
    logits = torch.tensor([-5.0, -6.0, 5.0, 6.0])
    assert fit_temperature(logits, torch.tensor([0, 0, 1, 1])) >= 0.25


def test_what_so_many_separated_rows_promise_is_what_they_can_show() -> None:
    labels = torch.arange(200) % 2
    temperature = fit_temperature(80.0 * labels - 40, labels)
    assert torch.sigmoid(torch.tensor(40 / temperature)) == pytest.approx(101 / 102, abs=1e-4)
