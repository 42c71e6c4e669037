from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.policy import Decision, Mode, Policy, Verdict, decide


def policy(mode: Mode = Mode.STEER, threshold: float = 0.5, eps: float = 1.5) -> Policy:
    return Policy("test", mode, threshold, eps, "I can't help with that.")


@pytest.mark.parametrize(
    ("mode", "score", "expected"),
    [
        (Mode.OFF, 0.9, Decision(Verdict.PASS, None, 0.0)),
        (Mode.OFF, 0.1, Decision(Verdict.PASS, None, 0.0)),
        (Mode.MONITOR, 0.9, Decision(Verdict.MONITORED, 0.9, 0.0)),
        (Mode.MONITOR, 0.1, Decision(Verdict.PASS, 0.1, 0.0)),
        (Mode.STEER, 0.9, Decision(Verdict.STEERED, 0.9, 1.5)),
        (Mode.STEER, 0.1, Decision(Verdict.PASS, 0.1, 0.0)),
        (Mode.BLOCK, 0.9, Decision(Verdict.BLOCKED, 0.9, 0.0)),
        (Mode.BLOCK, 0.1, Decision(Verdict.PASS, 0.1, 0.0)),
    ],
)
def test_every_mode(mode: Mode, score: float, expected: Decision) -> None:
    assert decide([score], [policy(mode)]) == [expected]


@pytest.mark.parametrize("mode", [Mode.MONITOR, Mode.STEER, Mode.BLOCK])
def test_a_score_at_the_threshold_is_flagged_and_one_below_is_not(mode: Mode) -> None:
    at, below = decide([0.5, math.nextafter(0.5, 0)], [policy(mode)] * 2)
    assert at.flagged
    assert not below.flagged


@pytest.mark.parametrize("mode", [Mode.MONITOR, Mode.STEER, Mode.BLOCK])
def test_a_score_that_is_no_number_is_flagged(mode: Mode) -> None:
    assert decide([math.nan], [policy(mode)])[0].flagged


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(list(Mode)), st.floats(0, 1), st.floats(0.1, 5))))
def test_rows_are_judged_each_by_itself(rows: list[tuple[float, Mode, float, float]]) -> None:
    scores = [score for score, *_ in rows]
    policies = [policy(mode, threshold, eps) for _, mode, threshold, eps in rows]
    together = decide(scores, policies)
    alone = [decide([score], [each])[0] for score, each in zip(scores, policies, strict=True)]
    assert together == alone
    for decision, each in zip(together, policies, strict=True):
        assert (decision.eps > 0) == (decision.verdict is Verdict.STEERED)
        assert (decision.score is None) == (each.mode is Mode.OFF)


def test_as_many_policies_as_scores() -> None:
    with pytest.raises(ValueError):
        decide([0.1, 0.2], [policy()])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_a_threshold_out_of_range_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold.*{threshold}"):
        policy(threshold=threshold)


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf])
def test_an_eps_out_of_range_is_named(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps.*{eps}"):
        policy(eps=eps)


def test_steering_by_nothing_and_blocking_with_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="eps"):
        policy(Mode.STEER, eps=0.0)
    with pytest.raises(ValueError, match="refusal"):
        Policy("test", Mode.BLOCK, 0.5, 1.0, "")
