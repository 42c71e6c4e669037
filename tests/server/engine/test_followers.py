"""Several answers to one prompt: it is computed once, whoever begins, ends or fails first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.backbone import Backbone
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Ask, Event, Finish
from steering.policy import Mode, Policy, Verdict
from tests.server.fakes import REFUSAL_TOKEN, FakeBackbone, FakeGuard, as_any, ask, next_token
from tests.server.guards import random_guard
from tests.tiny import chats_of, pictures

PROMPT = [10 + i % 7 for i in range(129)]


def engine_of(backbone: FakeBackbone, *, places: int = 8, budget: int = 1000) -> OwnEngine:
    return OwnEngine(as_any(backbone), as_any(FakeGuard()), Scheduler(places, budget))


def choices(count: int, ids: Sequence[int] = PROMPT, **options: Any) -> list[Ask]:
    first = ask("0", ids, **options)
    return [first, *(replace(first, id=str(number), leader="0") for number in range(1, count))]


def begun(engine: OwnEngine, asks: Sequence[Ask]) -> list[OwnRequest]:
    requests = engine.prepare(asks)
    for request in requests:
        engine.add(request)
    return requests


def finished(engine: OwnEngine) -> list[Event]:
    events: list[Event] = []
    for _ in range(1000):
        if engine.idle:
            return events
        events += engine.step()
    raise AssertionError("it does not end")


def said(count: int, ids: Sequence[int] = PROMPT) -> list[int]:
    history = list(ids)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(ids) :]


@pytest.mark.parametrize(("places", "budget"), [(8, 1000), (3, 1000), (1, 1000), (8, 50), (2, 50)])
def test_a_prompt_is_computed_once(places: int, budget: int) -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone, places=places, budget=budget)
    requests = begun(engine, choices(8, max_tokens=3))
    events = finished(engine)
    assert backbone.computed <= len(PROMPT) + 8 + 8 * 2, "the last of an answer's tokens is not computed"
    assert all(request.output_ids == said(3) for request in requests)
    assert sorted(event.request.id for event in events if event.finish) == [str(number) for number in range(8)]
    assert backbone.rows == []
    for request in requests:
        times = request.timings
        assert times.arrived <= as_any(times.scheduled) <= as_any(times.prefilled) <= as_any(times.first_token)


def test_others_go_on_while_some_wait_for_their_prompt() -> None:
    engine = engine_of(FakeBackbone(), budget=64)
    begun(engine, choices(4, max_tokens=2))
    other = ask("other", [20, 3], max_tokens=1)
    begun(engine, [other])
    events = [event for _ in range(3) for event in engine.step()]
    assert next(event.request.id for event in events if event.finish) == "other"


@pytest.mark.parametrize("steps", [0, 1, 3, 4], ids=["waiting", "in its prompt", "with it", "beside others"])
def test_a_first_choice_that_is_aborted_leaves_its_work_to_the_next(steps: int) -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone, budget=50)
    first, *others = begun(engine, choices(4, max_tokens=4))
    for _ in range(steps):
        engine.step()
    event = engine.abort(first.id)
    assert event is not None
    assert event.finish is Finish.ABORT
    finished(engine)
    assert all(request.output_ids == said(4) for request in others)
    assert len({id(request.decision) for request in others}) == 1
    assert backbone.computed <= len(PROMPT) + 4 * 5
    assert backbone.rows == []


@pytest.mark.parametrize("aborted", ["1", "3"])
def test_a_later_choice_that_is_aborted_while_it_waits_is_gone(aborted: str) -> None:
    engine = engine_of(FakeBackbone(), places=1)
    requests = begun(engine, choices(4))
    engine.step()
    assert engine.abort(aborted) is not None
    finished(engine)
    assert [request.id for request in requests if not request.output_ids] == [aborted]


def test_a_prompt_that_is_blocked_ends_all_at_once() -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone)
    requests = begun(engine, choices(4, [40, 3], mode=Mode.BLOCK))
    events = engine.step()
    assert sorted((event.request.id, event.finish) for event in events) == [
        (str(number), Finish.CONTENT_FILTER) for number in range(4)
    ]
    assert all(request.timings.scheduled and request.timings.prefilled for request in requests)
    assert (engine.idle, backbone.rows, backbone.computed) == (True, [], 2)


def test_steered_choices_refuse_and_scored_ones_end() -> None:
    engine = engine_of(FakeBackbone())
    steered = begun(engine, choices(3, [40, 3], max_tokens=2))
    finished(engine)
    assert all(request.output_ids == [REFUSAL_TOKEN] * 2 for request in steered)
    scored = begun(engine, choices(3, [40, 3], max_tokens=0, mode=Mode.MONITOR))
    assert [event.finish for event in finished(engine)] == [Finish.STOP] * 3
    assert {request.decision.verdict for request in scored if request.decision} == {Verdict.MONITORED}


def test_choices_of_a_prompt_that_fails_each_fail_and_nothing_stays() -> None:
    backbone = FakeBackbone()
    backbone.poison = PROMPT[-1]
    engine = engine_of(backbone)
    requests = begun(engine, choices(3))
    events = finished(engine)
    assert [(event.request.id, event.finish) for event in events] == [(each.id, Finish.ERROR) for each in requests]
    assert backbone.rows == []
    assert engine.failure is None


def test_choices_that_give_up_their_rows_are_computed_again() -> None:
    backbone = FakeBackbone(room=150 + 12 * 2)
    engine = engine_of(backbone)
    requests = begun(engine, choices(5, PROMPT[:40], max_tokens=20))
    finished(engine)
    assert engine.scheduler.preemptions > 0
    assert all(request.output_ids == said(20, PROMPT[:40]) for request in requests)
    assert backbone.rows == []


# on models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False], ids=["kept prefixes", "nothing kept"])
def test_choices_are_what_they_are_alone(keep: bool, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone.cache.pool, "_keep", keep)
    guard = random_guard(backbone.info)
    policy = Policy("default", Mode.MONITOR, 0.5, 1.0, "No.")
    forward, computed = backbone.forward, [0]

    def count(rows: Any, counts: Sequence[int], **options: Any) -> torch.Tensor:
        computed[0] += sum(counts)
        return forward(rows, counts, **options)

    monkeypatch.setattr(backbone, "forward", count)
    for name, messages in chats_of(backbone.info.family).items():
        prompt = backbone.inputs.build(messages, pictures(messages))
        params = [SamplingParams(temperature=0.0), SamplingParams(seed=1), SamplingParams(seed=2, top_p=0.9)]
        alone = []
        for number, each in enumerate(params):
            backbone.forget()
            engine = OwnEngine(backbone, guard, Scheduler(8, 10_000))
            alone += begun(engine, [Ask(str(number), prompt, each, 5, policy)])
            finished(engine)
        for places in (8, 2, 1):
            backbone.forget()
            computed[0] = 0
            engine = OwnEngine(backbone, guard, Scheduler(places, 10_000))
            asks = [Ask(str(n), prompt, each, 5, policy, leader="0" if n else None) for n, each in enumerate(params)]
            together = begun(engine, asks)
            finished(engine)
            assert [each.output_ids for each in together] == [each.output_ids for each in alone], (name, places)
            assert len({id(each.decision) for each in together}) == 1
            assert as_any(together[0].decision).score == as_any(alone[0].decision).score
            answers = sum(len(each.output_ids) for each in together)
            assert computed[0] <= len(prompt.ids) + len(params) + answers
            assert backbone.open_rows == 0
