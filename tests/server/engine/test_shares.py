"""Fairness among tenants, of the scheduler alone: who waits all the time gets as much as anybody else who does."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler, StepPlan
from server.engine.shares import DECODED, Shares
from server.request import Ask
from tests.server.engine.test_scheduler import Memory, computed, names, parts

A, B, C = 1, 2, 3


def request(name: str, tokens: int, tenant: int, answer: int = 1) -> OwnRequest:
    prompt = cast(Any, type("Counted", (), {"ids": [0] * tokens}))
    none = cast(Any, None)
    return OwnRequest(Ask(name, prompt, none, answer, none, tenant=tenant), sampler=none)


def step(scheduler: Scheduler, memory: Memory) -> StepPlan:
    """One step, at whose end what is complete leaves."""
    plan = scheduler.schedule(memory)
    for each in computed(plan):
        if len(each.output_ids) == each.max_tokens:
            memory.release(each)
            scheduler.finish(each)
    return plan


def tokens_of(scheduler: Scheduler, memory: Memory, steps: int) -> Counter[int]:
    """Tokens that each tenant gets."""
    found: Counter[int] = Counter()
    for _ in range(steps):
        for each, count in step(scheduler, memory).work:
            found[each.ask.tenant] += count
    return found


def test_a_crowd_of_one_tenant_does_not_hold_up_another() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=12), Memory()
    for number in range(20):
        scheduler.add(request(f"a{number}", 6, A))
    assert parts(step(scheduler, memory)) == [("a0", 6), ("a1", 6)]
    scheduler.add(request("b0", 6, B))
    scheduler.add(request("b1", 6, B))
    turns = [names([work.request for work in step(scheduler, memory).work]) for _ in range(3)]
    assert turns == [["a2", "b0"], ["a3", "b1"], ["a4", "a5"]]


def test_turns_are_of_tokens_and_not_of_requests() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory()
    for number in range(3):
        scheduler.add(request(f"long{number}", 40, A))
    for number in range(30):
        scheduler.add(request(f"short{number}", 4, B))
    had = tokens_of(scheduler, memory, steps=24)
    assert abs(had[A] - had[B]) <= 40


def test_a_free_row_goes_to_who_has_had_least_answers_included() -> None:
    scheduler, memory = Scheduler(max_running=1, prefill_tokens=100), Memory()
    scheduler.add(request("talker", 4, A, answer=50))
    step(scheduler, memory)
    for name, tenant in [("a", A), ("b", B)]:
        scheduler.add(request(name, 10, tenant))
    scheduler.add(request("b again", 20, B))
    order: list[str] = []
    while not scheduler.idle:
        order += [each.id for each, _ in step(scheduler, memory).work if each.id not in order]
    assert order == ["talker", "b", "b again", "a"]


def test_nobody_saves_up_by_asking_nothing() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory()
    for number in range(100):
        scheduler.add(request(f"a{number}", 10, A))
    for _ in range(50):
        step(scheduler, memory)
    for number in range(100):
        scheduler.add(request(f"b{number}", 10, B))
    assert tokens_of(scheduler, memory, steps=20) == {A: 100, B: 100}


def test_what_a_tenant_had_while_nobody_else_waited_is_not_held_against_it() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=10), Memory()
    scheduler.add(request("d", 4, B, answer=10_000))  # decodes all the time, and waits for nothing
    for number in range(100):
        scheduler.add(request(f"a{number}", 10, A))
    for _ in range(60):
        step(scheduler, memory)
    for number in range(20):
        scheduler.add(request(f"c{number}", 10, C))
    found = tokens_of(scheduler, memory, steps=20)
    assert abs(found[A] - found[C]) <= 10


def test_an_answer_in_the_middle_comes_before_all_tenants() -> None:
    scheduler, memory = Scheduler(max_running=8, prefill_tokens=100), Memory(room=12)
    for name in ("a", "b"):
        scheduler.add(request(name, 6, A, answer=8))
    computed(scheduler.schedule(memory))
    computed(scheduler.schedule(memory))
    scheduler.add(request("new", 1, B))
    assert names([*scheduler.waiting]) == ["b", "new"], "b has given its room back"
    gone = scheduler.running["a"]
    memory.release(gone)
    scheduler.finish(gone)
    assert parts(scheduler.schedule(memory)) == [("b", 7), ("new", 1)]


def test_tenants_that_have_gone_are_forgotten() -> None:
    shares = Shares()
    for tenant in range(1000):
        each = request("x", 5, tenant)
        assert shares.ordered([each], {tenant}) == [each]
        shares.charge(each, 5, decoding=False)
    assert len(shares) < 5


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([A, B, C]), st.integers(1, 60), st.integers(1, 6)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 4),
    st.integers(1, 40),
)
def test_two_who_wait_all_the_time_have_had_the_same(
    arrivals: list[tuple[int, int, int, int]], rows: int, budget: int
) -> None:
    """Apart by no more than one prompt, one step's tokens, and the answers of the rows that were given at once."""
    scheduler, memory = Scheduler(rows, budget), Memory()
    longest, answer = max(tokens for _, _, tokens, _ in arrivals), max(said for _, _, _, said in arrivals)
    apart = 2 * (longest + budget + DECODED * rows * answer)
    had: Counter[int] = Counter()
    since: dict[int, Counter[int]] = {}  # by tenant who waits: what all had had when it began to
    pending = [*enumerate(arrivals)]
    while pending or not scheduler.idle:
        steps = pending[0][1][0] if pending else 1
        if pending:
            number, (_, tenant, tokens, said) = pending.pop(0)
            scheduler.add(request(str(number), tokens, tenant, said))
        for _ in range(steps):
            waiting = {each.ask.tenant for each in scheduler.live() if not each.decodes}
            since = {tenant: since.get(tenant, had.copy()) for tenant in waiting}
            before = {each: each.decodes for each in scheduler.live()}
            for each, count in step(scheduler, memory).work:
                had[each.ask.tenant] += DECODED * count if before[each] else count
            for one in waiting:
                for other in waiting:
                    begun = max(since[one], since[other], key=lambda then: then.total())
                    gained = [had[tenant] - begun[tenant] for tenant in (one, other)]
                    assert abs(gained[0] - gained[1]) <= apart
