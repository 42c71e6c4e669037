"""The scheduler without a model: order, budgets, and that no request is ever lost or doubled."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from server.request import Request
from server.scheduler import Scheduler


def request(name: str, tokens: int = 4) -> Request:
    return Request(
        id=name,
        prompt=cast(Any, SimpleNamespace(ids=[0] * tokens)),
        sampler=cast(Any, None),
        max_tokens=8,
        policy=cast(Any, None),
    )


def names(requests: Sequence[Request]) -> list[str]:
    return [r.id for r in requests]


def test_a_new_request_is_prefilled_beside_running_ones() -> None:
    scheduler = Scheduler(max_running=2, prefill_tokens=100)
    for name in "abc":
        scheduler.add(request(name))
    first = scheduler.schedule()
    assert (names(first.prefill), names(first.decode)) == (["a", "b"], [])
    scheduler.finish(first.prefill[0])
    second = scheduler.schedule()
    assert (names(second.prefill), names(second.decode)) == (["c"], ["b"])


def test_the_token_budget_splits_a_burst_but_lets_one_long_prompt_in() -> None:
    scheduler = Scheduler(max_running=8, prefill_tokens=10)
    for name, tokens in [("long", 50), ("a", 6), ("b", 6)]:
        scheduler.add(request(name, tokens))
    assert [names(scheduler.schedule().prefill) for _ in range(4)] == [["long"], ["a"], ["b"], []]


def test_deferred_requests_keep_their_order_and_come_first() -> None:
    scheduler = Scheduler(max_running=3, prefill_tokens=100)
    for name in "abcd":
        scheduler.add(request(name))
    admitted = scheduler.schedule().prefill
    scheduler.defer(admitted[1:])
    plan = scheduler.schedule()
    assert (names(plan.prefill), names(plan.decode)) == (["b", "c"], ["a"])


def test_finish_removes_a_waiting_request_too() -> None:
    scheduler = Scheduler(max_running=1, prefill_tokens=100)
    for name in "ab":
        scheduler.add(request(name))
    scheduler.schedule()
    waiting = scheduler.find("b")
    assert waiting is not None
    scheduler.finish(waiting)
    assert names(scheduler.live()) == ["a"]
    assert scheduler.find("b") is None


@given(
    st.lists(st.sampled_from(["add", "schedule", "finish", "defer", "abort"]), max_size=60),
    st.integers(1, 4),
    st.randoms(),
)
def test_every_request_is_in_exactly_one_place(actions: list[str], rows: int, random: Any) -> None:
    scheduler = Scheduler(max_running=rows, prefill_tokens=7)
    live: set[str] = set()
    for number, action in enumerate(actions):
        match action:
            case "add":
                scheduler.add(request(str(number), random.randint(1, 10)))
                live.add(str(number))
            case "schedule":
                plan = scheduler.schedule()
                assert not set(names(plan.prefill)) & set(names(plan.decode))
                assert len(plan.prefill) + len(plan.decode) == len(scheduler.running)
            case "defer":
                scheduler.defer(scheduler.schedule().prefill)
            case "finish" | "abort" if live:
                victim = scheduler.find(random.choice(sorted(live)))
                assert victim is not None
                scheduler.finish(victim)
                live.discard(victim.id)
        assert sorted(names(scheduler.live())) == sorted(live)
        assert len(scheduler.running) <= rows
    assert scheduler.idle == (not live)
