"""The simulation of the scheduler: what a bound on gaps is for."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.estimate import percentile
from benchmarks.scheduling import ANSWER, COUNT, Costs, loads, quiet_key, simulate

COSTS = Costs(step=0.005, row=0.001, token=0.0006)


def first_and_gap(name: str, max_gap: float | None) -> tuple[float, float]:
    _, marks = simulate(loads(COSTS)[name], COSTS, max_gap)
    assert [len(times) for times in marks] == [1 + ANSWER] * COUNT
    gaps = [after - before for times in marks for before, after in pairwise(times[1:])]
    return percentile([times[1] - times[0] for times in marks], 50), percentile(gaps, 99)


def test_a_gap_of_300_ms_brings_first_tokens_and_keeps_gaps_short() -> None:
    for name in loads(COSTS):
        doubled, _ = first_and_gap(name, 0.001)
        first, gap = first_and_gap(name, 0.3)
        endless, _ = first_and_gap(name, None)
        assert first < 0.75 * doubled
        assert first < endless
        assert gap < 0.36, "steps scatter by 15 % about what they cost"


def test_a_key_with_one_client_does_not_wait_for_the_crowd_of_another() -> None:
    alone, behind = (percentile(quiet_key(COSTS, 0.3, turns=turns), 50) for turns in (True, False))
    assert alone < 0.5 * behind
