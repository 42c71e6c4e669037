"""The scheduler without a model: order, budgets, memory, and that no request is ever lost or doubled."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.budget import FLOOR, Budget
from server.engine.own_request import OwnRequest
from server.engine.scheduler import NoRoom, Scheduler, StepPlan, Work
from server.request import Ask


class Row:
    """Counts what a row would hold."""

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.length = 0
        self.held = 0


class Memory:
    """Room for so many tokens. Counts what was opened and released."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.rows: list[Row] = []
        self.broken: set[str] = set()

    @property
    def held(self) -> int:
        return sum(row.held for row in self.rows)

    def open(self, request: OwnRequest, *, alone: bool) -> None:
        if request.id in self.broken:
            raise ValueError(f"{request.id} is broken")
        if self.rows and self.held + len(request.prompt.ids) > self.room:
            raise NoRoom
        row = Row(request.pending)
        request.row = cast(Any, row)
        self.rows.append(row)

    def chunk(self, request: OwnRequest, count: int) -> int:
        return min(count, request.pending)

    def reserve(self, request: OwnRequest, count: int) -> bool:
        row = cast(Any, request.row)
        if self.held - row.held + row.length + count > self.room:
            return False
        row.held = row.length + count
        return True

    def release(self, request: OwnRequest) -> None:
        self.rows.remove(cast(Any, request.row))
        request.row = None


def request(name: str, tokens: int = 4) -> OwnRequest:
    prompt = SimpleNamespace(ids=[0] * tokens)
    return OwnRequest(Ask(name, cast(Any, prompt), cast(Any, None), 8, cast(Any, None)), sampler=cast(Any, None))


def computed(plan: StepPlan) -> list[OwnRequest]:
    """Do a plan's work; the requests that have got a token."""
    ready = []
    for each, count in plan.work:
        row = cast(Any, each.row)
        assert 0 < count <= row.pending
        row.length += count
        row.pending -= count
        if not row.pending:
            each.output_ids.append(0)
            row.pending = 1
            ready.append(each)
    return ready


def parts(plan: StepPlan) -> list[tuple[str, int]]:
    return [(each.id, count) for each, count in plan.work]


def names(requests: Sequence[OwnRequest]) -> list[str]:
    return [each.id for each in requests]


def test_a_new_request_joins_beside_running_ones() -> None:
    scheduler, memory = Scheduler(max_running=2, prefill_tokens=100), Memory()
    for name in "abc":
        scheduler.add(request(name))
    first = scheduler.schedule(memory)
    assert parts(first) == [("a", 4), ("b", 4)]
    computed(first)
    gone = first.work[0].request
    memory.release(gone)
    scheduler.finish(gone)
    assert parts(scheduler.schedule(memory)) == [("b", 1), ("c", 4)]


def test_the_budget_cuts_prompts_into_chunks_and_decoding_rows_go_on() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory()
    for name, tokens in [("a", 3), ("long", 25), ("b", 6)]:
        scheduler.add(request(name, tokens))
    found = []
    for _ in range(4):
        plan = scheduler.schedule(memory)
        found.append(parts(plan))
        computed(plan)
    assert found == [
        [("a", 3), ("long", 7)],
        [("a", 1), ("long", 10)],
        [("a", 1), ("long", 8), ("b", 2)],
        [("a", 1), ("long", 1), ("b", 4)],
    ]


def test_the_youngest_makes_room_and_is_the_next_to_come_back() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=100), Memory(room=10)
    for name in "abc":
        scheduler.add(request(name, 4))
    assert parts(scheduler.schedule(memory)) == [("a", 4), ("b", 4)]
    computed(StepPlan([Work(each, each.pending) for each in scheduler.running.values()]))
    plan = scheduler.schedule(memory)
    assert parts(plan) == [("a", 1), ("b", 1)]
    computed(plan)
    plan = scheduler.schedule(memory)
    assert parts(plan) == [("a", 1)]
    computed(plan)
    assert names([*scheduler.waiting]) == ["b", "c"]
    assert scheduler.preemptions == 1
    gone = scheduler.running["a"]
    memory.release(gone)
    scheduler.finish(gone)
    assert parts(scheduler.schedule(memory)) == [("b", 6), ("c", 4)], "b is computed again, with what it had said"


def test_a_request_that_cannot_be_opened_is_refused_alone() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=100), Memory()
    memory.broken.add("b")
    for name in "abc":
        scheduler.add(request(name))
    plan = scheduler.schedule(memory)
    assert [(each.id, str(error)) for each, error in plan.refused] == [("b", "b is broken")]
    assert parts(plan) == [("a", 4), ("c", 4)]


def test_finish_removes_a_waiting_request_too() -> None:
    scheduler = Scheduler(max_running=1, prefill_tokens=100)
    for name in "ab":
        scheduler.add(request(name))
    scheduler.schedule(Memory())
    waiting = scheduler.find("b")
    assert waiting is not None
    scheduler.finish(waiting)
    assert names(scheduler.live()) == ["a"]
    assert scheduler.find("b") is None


@given(
    st.lists(st.sampled_from(["add", "step", "step", "finish"]), max_size=80),
    st.integers(1, 4),
    st.integers(12, 40),
    st.randoms(),
)
def test_every_request_is_in_one_place_and_the_memory_holds(
    actions: list[str], rows: int, room: int, random: Any
) -> None:
    scheduler, memory = Scheduler(max_running=rows, prefill_tokens=7), Memory(room)
    live: set[str] = set()
    for number, action in enumerate(actions):
        match action:
            case "add":
                scheduler.add(request(str(number), random.randint(1, 10)))
                live.add(str(number))
            case "step":
                plan = scheduler.schedule(memory)
                assert plan.prompt_tokens <= 7
                computed(plan)
            case "finish" if live:
                victim = scheduler.find(random.choice(sorted(live)))
                assert victim is not None
                if victim.row is not None:
                    memory.release(victim)
                scheduler.finish(victim)
                live.discard(victim.id)
        assert sorted(names(scheduler.live())) == sorted(live)
        assert len(scheduler.running) <= rows
        assert memory.held <= room
        assert {id(each.row) for each in scheduler.running.values()} == {id(row) for row in memory.rows}
        assert all(each.row is None for each in scheduler.waiting)
    assert scheduler.idle == (not live)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(20, 40))
def test_everything_is_served_in_the_end_however_little_memory(lengths: list[int], room: int) -> None:
    scheduler, memory = Scheduler(max_running=4, prefill_tokens=5), Memory(room)
    for number, length in enumerate(lengths):
        scheduler.add(request(str(number), length))
    for _ in range(2000):
        if scheduler.idle:
            break
        for each in computed(scheduler.schedule(memory)):
            if len(each.output_ids) == each.max_tokens:
                memory.release(each)
                scheduler.finish(each)
    assert scheduler.idle
    assert memory.held == 0


class TestBudget:
    def test_without_a_slowdown_it_is_the_limit(self) -> None:
        budget = Budget(100)
        budget.observe(1.0, 8, 0)
        budget.observe(9.0, 8, 10)
        assert budget.tokens(8) == 100

    def test_beside_decoding_rows_a_step_takes_about_so_many_times_as_long(self) -> None:
        budget = Budget(1000, slowdown=2.0)
        assert budget.tokens(8) == 1000, "nothing is known yet"
        for _ in range(30):
            budget.observe(0.010, 8, 0)
            budget.observe(0.010 + 50 * 0.0001, 8, 50)
        assert budget.tokens(8) == pytest.approx(100, abs=2)
        assert budget.tokens(0) == 1000, "nobody waits"

    def test_prompts_always_get_on(self) -> None:
        budget = Budget(1000, slowdown=2.0)
        budget.observe(0.001, 8, 0)
        budget.observe(10.0, 8, 10)
        assert budget.tokens(8) == FLOOR
