from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.fitting.sas import bootstrap_interval, safety_awareness_score
from tests.reference import sas as reference


def twins(n: int, d: int, strength: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Toxic and safe states `[n, d]` whose differences share a direction of this strength."""
    generator = torch.Generator().manual_seed(seed)
    safe = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0)
    return safe + noise + strength * direction, safe


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 40), st.floats(0, 20), st.integers(0, 2**32))
def test_the_closed_form_is_the_double_loop(n: int, d: int, strength: float, seed: int) -> None:
    toxic, safe = twins(n, d, strength, seed)
    assert abs(safety_awareness_score(toxic, safe) - reference.safety_awareness_score(toxic, safe)) < 1e-10


def test_twins_that_do_not_differ_count_as_no_direction() -> None:
    toxic, safe = twins(10, 8, 3.0, 0)
    toxic[3] = safe[3]
    assert abs(safety_awareness_score(toxic, safe) - reference.safety_awareness_score(toxic, safe)) < 1e-10


def test_equal_directions_score_one_and_opposite_ones_minus_one() -> None:
    safe = torch.randn(7, 5)
    direction = torch.randn(5).double()
    lengths = torch.rand(7, 1).double() + 0.5
    assert safety_awareness_score(safe + lengths * direction, safe) == pytest.approx(1.0, abs=1e-6)
    assert safety_awareness_score(torch.stack([direction, -direction]), torch.zeros(2, 5)) == pytest.approx(-1.0)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (2, 4)), ((3, 4), (3, 5))])
def test_states_that_are_no_twins_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"two or more twins.*\("):
        safety_awareness_score(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_the_bootstrap_is_the_resampled_double_loop() -> None:
    toxic, safe = twins(9, 6, 2.0, 3)
    drawn = torch.randint(9, (50, 9), generator=torch.Generator().manual_seed(5))
    expected = torch.tensor([reference.resampled_score(toxic, safe, row) for row in drawn.tolist()]).double()
    low, high = bootstrap_interval(toxic, safe, samples=50, seed=5)
    assert low == pytest.approx(float(torch.quantile(expected, 0.025)), abs=1e-6)
    assert high == pytest.approx(float(torch.quantile(expected, 0.975)), abs=1e-6)


def test_the_interval_covers_the_true_score() -> None:
    # cosine of two differences v + noise with |v| = s in d dimensions, for many twins
    everyone = twins(4000, 16, 4.0, 1)
    truth = safety_awareness_score(*everyone)
    inside = 0
    for start in range(0, 2000, 50):
        toxic, safe = (states[start : start + 50] for states in everyone)
        low, high = bootstrap_interval(toxic, safe, samples=300, seed=start)
        inside += low <= truth <= high
    assert inside >= 34  # of 40


def test_the_planted_layer_has_the_highest_score() -> None:
    for strength in (0.5, 1.0, 3.0):
        layers = [twins(200, 64, strength if layer == 3 else 0.0, layer) for layer in range(6)]
        scores = [safety_awareness_score(*layer) for layer in layers]
        assert scores.index(max(scores)) == 3
