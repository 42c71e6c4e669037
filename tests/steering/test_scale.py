"""The scale of harmless prompts: it rises, says `-log p`, and goes on beyond what was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.scale import Scale, logistic


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=300),
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
)
def test_it_never_falls(values: list[float], asked: list[float]) -> None:
    scale = Scale.of(np.array(values))
    found = [scale(value) for value in sorted(asked)]
    assert found == sorted(found)
    assert min(found) >= 0


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=99), st.lists(st.floats(-20, 20) | st.integers(-9, 9)))
def test_it_says_of_one_value_what_it_says_of_several(values: list[int], asked: list[float]) -> None:
    scale = Scale.of(np.array(values, dtype=np.float64))
    assert [scale(value) for value in asked] == scale.each(np.array(asked)).tolist()


def test_it_says_how_unusual_a_value_is() -> None:
    """Of exponential values, of which the share above x is exp(-x), in the middle and far beyond the last."""
    count = 20_000
    values = -np.log((np.arange(count) + 0.5) / count)
    scale = Scale.of(values)
    for value in (0.5, 2.0, 3.5, 6.0, 20.0):
        assert scale(value) == pytest.approx(value, rel=0.02)


def test_values_that_are_all_alike() -> None:
    scale = Scale.of(np.full(10, 2.0))
    assert scale(1.0) == 0.0
    assert math.isfinite(scale(3.0))
    assert scale(3.0) > scale(2.0)


def test_what_is_no_number_has_no_scale() -> None:
    assert math.isnan(Scale.of(np.arange(100.0))(math.nan))


@given(st.floats(-1e300, 1e300), st.floats(0, 4), st.floats(-10, 10))
def test_the_logistic_stays_within_its_bounds(value: float, slope: float, shift: float) -> None:
    assert 0.0 <= logistic(value, slope, shift) <= 1.0


def test_the_logistic_of_no_number_is_none() -> None:
    assert math.isnan(logistic(math.nan, 1.0, 0.0))
