"""How many prompt tokens a step takes beside decoding rows, by what steps cost."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from server.engine.budget import FLOOR, Budget, Spent
from server.engine.costs import pairs


def learned(*, gap: float | None, step: float = 0.010, token: float = 0.0001) -> Budget:
    budget = Budget(1000, gap)
    for _ in range(30):
        budget.observe(Spent(step, 8, 0, 0.0))
        budget.observe(Spent(step + 200 * token, 8, 200, pairs(200, 0)))
    return budget


def test_without_a_gap_it_is_the_limit() -> None:
    assert learned(gap=None, token=0.9).allow(8).fits(0) == 1000


def test_beside_decoding_rows_a_step_takes_the_gap() -> None:
    assert Budget(1000, 0.030).allow(8).fits(0) == 1000, "nothing is known yet"
    budget = learned(gap=0.030)
    assert budget.allow(8).fits(0) == pytest.approx(200, abs=2)
    assert budget.allow(0).fits(0) == 1000, "nobody waits for a token"


def test_prompts_share_what_a_step_may_take() -> None:
    left = learned(gap=0.030).allow(8)
    left.take(150, 0)
    assert left.fits(0) == pytest.approx(50, abs=2)
    left.take(50, 0)
    assert left.fits(0) <= 2


def test_where_decoding_alone_takes_most_of_the_gap_prompts_get_as_long() -> None:
    assert learned(gap=0.011).allow(8).fits(0) == pytest.approx(100, abs=2)
    assert learned(gap=0.001).allow(8).fits(0) == pytest.approx(100, abs=2)


def test_costs_that_scatter_leave_some_of_the_gap() -> None:
    budget = Budget(1000, 0.030)
    for number in range(60):
        budget.observe(Spent(0.010, 8, 0, 0.0))
        budget.observe(Spent(0.010 + 50 * (0.00005 if number % 2 else 0.00015), 8, 50, pairs(50, 0)))
    assert 70 < budget.allow(8).fits(0) < 100, "200 by the mean, every pass within 133"


def test_a_pass_over_few_tokens_says_little_about_many() -> None:
    budget = learned(gap=0.030)
    budget.observe(Spent(0.010 + 0.005, 8, 1, pairs(1, 0)))
    assert budget.allow(8).fits(0) > 150


def test_prompts_always_get_on() -> None:
    left = learned(gap=0.030, token=1.0).allow(8)
    assert left.fits(0) == left.fits(100_000) == FLOOR
    left.take(10, 0)
    assert left.fits(0) == FLOOR - 10, "of all prompts together"


def test_a_picture_takes_as_much_as_the_tokens_of_its_time() -> None:
    budget = learned(gap=0.030)
    for _ in range(30):
        budget.observe(Spent(0.010 + 0.020 + 0.005, 8, 200, pairs(200, 0), 100, 0.005))
    left = budget.allow(8)
    assert left.fits(0, unseen=100) == pytest.approx(150, abs=2)
    left.take(100, 0, unseen=100)
    assert left.fits(0) == pytest.approx(50, abs=2)


@dataclass
class Machine:
    """Steps whose prompt tokens cost a share more for each token before them."""

    budget: Budget
    share: float
    scatter: float = 0.0  # as a standard deviation of the logarithm
    token: float = 0.0004
    step: float = 0.015

    def __post_init__(self) -> None:
        self.chance = random.Random(0)
        for _ in range(10):
            self.take(200, 0, decoding=0)
            self.take(0, 0)

    def take(self, tokens: int, position: int, decoding: int = 8) -> float:
        """A step's seconds, of which the budget learns."""
        work = tokens + self.share * pairs(tokens, position)
        seconds = (self.step * bool(decoding) + self.token * work) * self.chance.lognormvariate(0.0, self.scatter)
        self.budget.observe(Spent(seconds, decoding, tokens, pairs(tokens, position)))
        return seconds

    def prompt(self, length: int) -> list[tuple[int, float]]:
        """Each step's tokens and seconds."""
        position, steps = 0, []
        while position < length:
            tokens = min(self.budget.allow(8).fits(position), length - position)
            steps.append((tokens, self.take(tokens, position)))
            position += tokens
        return steps


@pytest.mark.parametrize("share", [0.0, 1 / 6000, 1 / 2000, 1 / 600], ids=["none", "low", "as measured", "high"])
def test_every_step_of_a_long_prompt_takes_the_gap(share: float) -> None:
    machine = Machine(Budget(4096, 0.3), share)
    first = [seconds for _, seconds in machine.prompt(4000)]
    assert max(first[3:]) <= 1.05 * 0.3, "learnt from its own steps"
    for _ in range(5):
        later = [seconds for _, seconds in machine.prompt(4000)]
        assert max(later) <= 1.05 * 0.3
        assert min(later[:-1]) >= 0.8 * 0.3, "time is left"


def test_short_prompts_do_not_make_it_forget_what_long_ones_cost() -> None:
    machine = Machine(Budget(4096, 0.3), 1 / 2000)
    machine.prompt(4000)
    for number in range(300):
        machine.prompt(30 + 37 * number % 400)
    assert max(seconds for _, seconds in machine.prompt(4000)) <= 1.1 * 0.3


def test_where_all_begin_behind_the_same_context_others_are_not_thought_free() -> None:
    machine = Machine(Budget(4096, 0.3), 1 / 2000, scatter=0.1)
    for _ in range(200):
        machine.take(50, 4000)
    assert machine.take(machine.budget.allow(8).fits(0), 0) <= 1.1 * 0.3


def test_scatter_neither_stretches_steps_far_nor_makes_chunks_tiny() -> None:
    machine = Machine(Budget(4096, 0.3), 1 / 2000, scatter=0.15)
    machine.prompt(4000)
    steps = [step for _ in range(40) for step in machine.prompt(4000)[:-1]]
    seconds = sorted(seconds for _, seconds in steps)
    assert seconds[int(0.95 * len(seconds))] <= 1.1 * 0.3
    assert seconds[len(seconds) // 2] >= 0.65 * 0.3
    assert min(tokens for tokens, _ in steps) >= 3 * FLOOR
