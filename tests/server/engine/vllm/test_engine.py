"""The engine on vLLM without vLLM: what is shown, when, and how requests end."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.vllm.engine import Progress, VllmEngine
from server.engine.vllm.worker import Read
from server.request import Ask, EngineFailed, Event, Finish, RequestFailed, Schema
from steering.policy import Mode, Verdict
from tests.server.engine.vllm.core import FakeCore
from tests.server.fakes import EOS, REFUSAL_TOKEN, FakeGuard, as_any, ask, next_token

SAFE, TOXIC = [1, 2, 3], [49, 2, 3]


def engine_on(core: FakeCore, *, guard: Any = None) -> VllmEngine:
    info = as_any(SimpleNamespace(eos_ids=frozenset({EOS})))
    inputs = as_any(SimpleNamespace(layout=lambda _: None))
    return VllmEngine(core, core.channel, info, inputs, as_any(guard or FakeGuard()))


@pytest.fixture
def core() -> FakeCore:
    return FakeCore(SimpleQueue[Read]())


@pytest.fixture
def engine(core: FakeCore) -> VllmEngine:
    return engine_on(core)


def put(engine: VllmEngine, *asks: Ask) -> None:
    for request in engine.prepare(asks):
        engine.add(request)


def until_idle(engine: VllmEngine) -> dict[str, list[Event]]:
    told: dict[str, list[Event]] = {}
    for _ in range(100):
        if engine.idle:
            break
        for event in engine.step():
            told.setdefault(event.request.id, []).append(event)
    assert engine.idle
    assert all(
        [event.finish is not None for event in events].index(True) == len(events) - 1 for events in told.values()
    )
    return told


def tokens(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def said(ids: Sequence[int], count: int) -> list[int]:
    output: list[int] = []
    for _ in range(count):
        output.append(next_token([*ids, *output]))
    return output


@pytest.mark.parametrize("steps", [1, 3])
def test_of_a_flagged_request_nothing_is_shown_but_the_refusal_and_others_say_what_they_say_alone(steps: int) -> None:
    """Also where a prompt takes several steps, of which only the last has its score."""
    engine = engine_on(FakeCore(SimpleQueue[Read](), steps=steps))
    put(engine, ask("safe", SAFE))
    put(engine, ask("toxic", TOXIC))
    told = until_idle(engine)
    assert tokens(told["safe"]) == said(SAFE, 5)
    assert tokens(told["toxic"]) == [REFUSAL_TOKEN] * 5
    decisions = {name: events[-1].request.decision for name, events in told.items()}
    assert decisions["safe"] is not None
    assert decisions["safe"].verdict is Verdict.PASS
    assert decisions["safe"].score == pytest.approx(1 / 50)
    assert decisions["toxic"] is not None
    assert decisions["toxic"].verdict is Verdict.STEERED
    assert [events[-1].finish for events in told.values()] == [Finish.LENGTH, Finish.CONTENT_FILTER]


def test_a_steered_request_is_sampled_greedily_whatever_it_asks_for(engine: VllmEngine, core: FakeCore) -> None:
    put(engine, ask("toxic", TOXIC, temperature=1.5, logit_bias={3: 100.0}, min_tokens=5, logprobs=2))
    until_idle(engine)
    first, second = core.begun
    assert (first.params.temperature, first.eps) == (1.5, 0.0)
    assert (second.params.temperature, second.params.logit_bias, second.params.min_tokens, second.eps) == (0, {}, 0, 1)
    assert second.params.logprobs == 2


def test_without_a_score_a_request_fails_and_shows_nothing() -> None:
    engine = engine_on(FakeCore(SimpleQueue[Read](), tells=False))
    put(engine, ask("watched", SAFE))
    put(engine, ask("off", SAFE, mode=Mode.OFF))
    told = until_idle(engine)
    (event,) = told["watched"]
    assert (event.finish, event.token) == (Finish.ERROR, None)
    assert isinstance(event.error, RequestFailed)
    assert tokens(told["off"]) == said(SAFE, 5)


def test_a_blocked_request_and_one_that_wants_a_score_alone_show_no_token(engine: VllmEngine, core: FakeCore) -> None:
    put(engine, ask("blocked", TOXIC, mode=Mode.BLOCK))
    put(engine, ask("scored", SAFE, max_tokens=0))
    told = until_idle(engine)
    assert [(len(events), events[0].finish, events[0].token) for events in told.values()] == [
        (1, Finish.CONTENT_FILTER, None),
        (1, Finish.STOP, None),
    ]
    assert not core.runs


def test_the_decision_on_the_first_choice_holds_for_the_others(engine: VllmEngine, core: FakeCore) -> None:
    put(engine, ask("a", TOXIC), ask("b", TOXIC, leader="a"), ask("c", TOXIC, leader="a"))
    told = until_idle(engine)
    assert [tokens(told[name]) for name in "abc"] == [[REFUSAL_TOKEN] * 5] * 3
    assert [run.eps for run in core.begun] == [0, 1, 1, 1]  # scored once


def test_a_choice_whose_first_is_aborted_leads_the_others(engine: VllmEngine, core: FakeCore) -> None:
    put(engine, ask("a", SAFE), ask("b", SAFE, leader="a"), ask("c", SAFE, leader="a"))
    assert engine.abort("a") is not None
    told = until_idle(engine)
    assert [tokens(told[name]) for name in "bc"] == [said(SAFE, 5)] * 2
    assert len(core.begun) == 3


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("ids", [SAFE, TOXIC])
def test_an_abort_ends_a_request_once_and_no_other(
    engine: VllmEngine, core: FakeCore, ids: list[int], steps: int
) -> None:
    put(engine, ask("aborted", ids))
    put(engine, ask("other", SAFE))
    shown: list[int] = []
    for _ in range(steps):
        shown += tokens([event for event in engine.step() if event.request.id == "other"])
    event = engine.abort("aborted")
    assert event is not None
    assert event.finish is Finish.ABORT
    assert engine.abort("aborted") is None
    assert shown + tokens(until_idle(engine)["other"]) == said(SAFE, 5)
    assert not core.runs


def test_what_vllm_does_not_take_fails_alone(engine: VllmEngine) -> None:
    put(engine, ask("long", range(1, 200)))
    put(engine, ask("short", SAFE))
    told = until_idle(engine)
    assert "too long" in str(told["long"][0].error)
    assert tokens(told["short"]) == said(SAFE, 5)


def test_the_engines_failure_ends_all(engine: VllmEngine) -> None:
    put(engine, ask("a", SAFE), ask("b", SAFE, leader="a"))
    put(engine, ask("c", TOXIC))
    engine.step()
    ended = engine.fail_all(EngineFailed("gone"))
    assert sorted(event.request.id for event in ended) == ["a", "b", "c"]
    assert engine.idle


def test_a_schema_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(RequestFailed, match="JSON schema"):
        engine.prepare([ask("json", SAFE, schema=Schema("{}"))])


def test_a_run_that_ends_without_an_answer_fails(
    engine: VllmEngine, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM ends what it can never compute."""
    put(engine, ask("never", SAFE))
    monkeypatch.setattr(core, "step", lambda: [Progress("never/plain", [], None, "length", None)])
    (event,) = until_idle(engine)["never"]
    assert (event.finish, event.token) == (Finish.ERROR, None)
    assert not core.runs
