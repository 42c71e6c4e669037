"""The scheduler without a model: order, budgets, memory, and that no request is ever lost or doubled."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from server.engine.budget import FLOOR, Spent
from server.engine.costs import pairs
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
        self.pictures: dict[str, tuple[int, int]] = {}  # by request: where its picture begins, and that one's tokens

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

    def unseen(self, request: OwnRequest, count: int) -> int:
        start, tokens = self.pictures.get(request.id, (0, 0))
        row = cast(Any, request.row)
        return tokens if row.length <= start < row.length + count else 0

    def reserve(self, request: OwnRequest, count: int) -> bool:
        row = cast(Any, request.row)
        if self.held - row.held + row.length + count > self.room:
            return False
        row.held = max(row.held, row.length + count)
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
        [("a", 3), ("b", 6), ("long", 1)],
        [("a", 1), ("b", 1), ("long", 10)],
        [("a", 1), ("b", 1), ("long", 10)],
        [("a", 1), ("b", 1), ("long", 4)],
    ]


def test_a_prompt_that_is_complete_soon_passes_a_long_one_that_has_begun() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory()
    scheduler.add(request("long", 100))
    computed(scheduler.schedule(memory))
    for name in "abc":
        scheduler.add(request(name, 3))
    assert parts(scheduler.schedule(memory)) == [("a", 3), ("b", 3), ("c", 3), ("long", 1)]


def test_who_passes_a_long_prompt_takes_no_room_that_it_needs() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory(room=30)
    scheduler.add(request("long", 25))
    found = []
    for name in "abc":
        plan = scheduler.schedule(memory)
        found.append(parts(plan))
        computed(plan)
        scheduler.add(request(name, 6))
    assert found == [[("long", 10)], [("long", 10)], [("long", 5)]]
    assert scheduler.preemptions == 0


def test_an_answer_that_gave_its_room_back_comes_before_new_prompts() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=100), Memory(room=12)
    for name in "ab":
        scheduler.add(request(name, 6))
    computed(scheduler.schedule(memory))
    computed(scheduler.schedule(memory))
    scheduler.add(request("new", 1))
    assert names([*scheduler.waiting]) == ["b", "new"]
    gone = scheduler.running["a"]
    memory.release(gone)
    scheduler.finish(gone)
    assert parts(scheduler.schedule(memory)) == [("b", 7), ("new", 1)]


@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 3))
def test_nobody_is_passed_for_ever(length: int, short: int, crowd: int) -> None:
    """In each step come `crowd` times the prompt tokens that it can compute."""
    scheduler, memory = Scheduler(max_running=1000, prefill_tokens=short), Memory()
    long = request("long", length)
    scheduler.add(long)
    spent = 0
    while not long.output_ids:
        for _ in range(crowd):
            scheduler.add(request(f"{spent} {len(scheduler.live())}", short))
        plan = scheduler.schedule(memory)
        spent += plan.prompt_tokens
        for each in computed(plan):
            if len(each.output_ids) == 2:
                memory.release(each)
                scheduler.finish(each)
        assert spent <= (crowd + 1) * (length + 2 * short)


@given(
    st.floats(0.001, 0.4),
    st.floats(0.00001, 0.01),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 600)), min_size=1, max_size=12),
)
def test_no_step_beside_decoding_rows_takes_longer_than_the_gap(
    step: float, token: float, arrivals: list[tuple[int, int]]
) -> None:
    gap = 0.3
    scheduler, memory = Scheduler(max_running=4, prefill_tokens=4096, max_gap=gap), Memory()

    def run(*, known: bool) -> None:
        plan = scheduler.schedule(memory)
        seconds = step * bool(plan.decoding) + token * plan.prompt_tokens
        scheduler.budget.observe(Spent(seconds, plan.decoding, plan.prompt_tokens, plan.prompt_pairs))
        if known and plan.decoding:
            assert seconds <= max(gap, 2 * step, step + FLOOR * token) * (1 + 1e-9)
            planned = [work.request for work in plan.work]
            waiting = any(each not in planned for each in scheduler.running.values())
            assert not waiting or seconds + token * (1 + 1e-9) > max(gap, 2 * step), "time is left, and somebody waits"
        for each in computed(plan):
            if len(each.output_ids) == each.max_tokens:
                memory.release(each)
                scheduler.finish(each)

    def drain(*, known: bool) -> None:
        for _ in range(100_000):
            if scheduler.idle:
                return
            run(known=known)
        raise AssertionError("somebody waits for ever")

    scheduler.add(request("first", 50))  # whose steps tell what they cost
    drain(known=False)
    for number, (steps, length) in enumerate(arrivals):
        scheduler.add(request(str(number), length))
        for _ in range(steps):
            run(known=True)
    drain(known=True)
    assert memory.held == 0


def test_a_picture_takes_its_share_of_the_gap() -> None:
    """A token takes 1 ms, a step of itself 10 ms, a picture of 100 tokens 50 ms more."""
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=1000, max_gap=0.2), Memory()
    for _ in range(30):
        scheduler.budget.observe(Spent(0.010, 1, 0, 0.0))
        scheduler.budget.observe(Spent(0.010 + 0.150, 1, 100, pairs(100, 0), 100, 0.050))
    scheduler.add(request("talks", 1))
    computed(scheduler.schedule(memory))
    for name in "abc":
        scheduler.add(request(name, 110))
        memory.pictures[name] = (5, 100)
    steps = []
    while any(not each.decodes for each in scheduler.live()):
        plan = scheduler.schedule(memory)
        begin = [each for each, count in plan.work if not each.decodes and memory.unseen(each, count)]
        steps.append((len(begin), plan.prompt_tokens))
        assert 0.010 + 0.050 * len(begin) + 0.001 * plan.prompt_tokens <= 0.2 + 0.003
        computed(plan)
    assert sum(tokens for _, tokens in steps) == 330
    assert [pictures for pictures, _ in steps] == [1, 1, 1], "two of them leave no room for their tokens"


def test_a_picture_that_passes_the_gap_gets_on_by_itself() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=1000, max_gap=0.2), Memory()
    for _ in range(30):
        scheduler.budget.observe(Spent(0.010, 1, 0, 0.0))
        scheduler.budget.observe(Spent(0.010 + 0.100 + 0.900, 1, 100, pairs(100, 0), 100, 0.900))
    scheduler.add(request("talks", 1))
    computed(scheduler.schedule(memory))
    for name in "ab":
        scheduler.add(request(name, 110))
        memory.pictures[name] = (5, 100)
    found = []
    for _ in range(4):
        plan = scheduler.schedule(memory)
        found.append([(each.id, count) for each, count in plan.work if not each.decodes])
        computed(plan)
    assert found == [[("a", FLOOR)], [("a", 110 - FLOOR)], [("b", FLOOR)], [("b", 110 - FLOOR)]]


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
