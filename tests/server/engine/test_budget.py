"""How many prompt tokens a step takes beside decoding rows, by what steps cost."""

from __future__ import annotations

import pytest

from server.engine.budget import FLOOR, Budget


def learned(*, gap: float | None, step: float = 0.010, token: float = 0.0001) -> Budget:
    budget = Budget(1000, gap)
    for _ in range(30):
        budget.observe(step, 8, 0)
        budget.observe(step + 200 * token, 8, 200)
    return budget


def test_without_a_gap_it_is_the_limit() -> None:
    assert learned(gap=None, token=0.9).tokens(8) == 1000


def test_beside_decoding_rows_a_step_takes_the_gap() -> None:
    assert Budget(1000, 0.030).tokens(8) == 1000, "nothing is known yet"
    budget = learned(gap=0.030)
    assert budget.tokens(8) == pytest.approx(200, abs=2)
    assert budget.tokens(0) == 1000, "nobody waits for a token"


def test_where_decoding_alone_takes_most_of_the_gap_prompts_get_as_long() -> None:
    assert learned(gap=0.011).tokens(8) == pytest.approx(100, abs=2)
    assert learned(gap=0.001).tokens(8) == pytest.approx(100, abs=2)


def test_costs_that_scatter_leave_some_of_the_gap() -> None:
    budget = Budget(1000, 0.030)
    for number in range(60):
        budget.observe(0.010, 8, 0)
        budget.observe(0.010 + 50 * (0.00005 if number % 2 else 0.00015), 8, 50)
    assert 90 < budget.tokens(8) < 130, "200 by the mean"


def test_a_pass_over_few_tokens_says_little_about_many() -> None:
    budget = learned(gap=0.030)
    budget.observe(0.010 + 0.005, 8, 1)
    assert budget.tokens(8) > 150


def test_prompts_always_get_on() -> None:
    assert learned(gap=0.030, token=1.0).tokens(8) == FLOOR
