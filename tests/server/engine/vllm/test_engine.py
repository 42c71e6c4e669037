"""The engine on vLLM without vLLM: what is shown, when, and how requests end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.row_sampler import GrammarError
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.engine.vllm.engine import VllmEngine
from server.engine.vllm.runs import Progress
from server.engine.vllm.worker import PromptRead, Read
from server.request import Ask, EngineFailed, Event, Finish, GrammarFailed, RequestFailed, Schema
from steering.policy import AnswerDecision, Hold, Mode, OutputPolicy, Verdict
from tests.server.engine.vllm.core import FakeCore
from tests.server.fakes import BEGUN, EOS, REFUSAL_TOKEN, FakeBackbone, FakeGuard, as_any, ask, next_token, own
from tests.server.guards import token_reader

SAFE, TOXIC = [1, 2, 3], [49, 2, 3]


def engine_on(core: FakeCore, *, guard: Any = None, grammars: Any = None) -> VllmEngine:
    info = as_any(SimpleNamespace(eos_ids=frozenset({EOS})))
    inputs = as_any(FakeBackbone().inputs)
    return VllmEngine(core, core.channel, info, inputs, as_any(guard or FakeGuard()), as_any(grammars))


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


class Grammar:
    """Allows every token but one, and counts them."""

    def __init__(self, without: int = -1) -> None:
        self.without = without
        self.text: list[int] = []

    def allowed(self) -> bytes:
        return b"\xff"

    def accept(self, token: int) -> None:
        if token == self.without:
            raise GrammarError("nothing more")
        self.text.append(token)

    def finish(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("steered", [False, True])
def test_a_grammar_goes_on_with_each_token_and_a_refusal_has_none(core: FakeCore, *, steered: bool) -> None:
    grammar = Grammar()
    grammars = SimpleNamespace(of=lambda _: grammar)
    engine = engine_on(core, grammars=grammars)
    put(engine, ask("json", TOXIC if steered else SAFE, schema=Schema("{}")))
    told = until_idle(engine)
    assert grammar.text == ([] if steered else tokens(told["json"]))
    assert [run.grammar for run in core.begun] == ([grammar, None] if steered else [grammar])


def test_a_grammar_that_leads_nowhere_ends_its_request(core: FakeCore) -> None:
    grammars = SimpleNamespace(of=lambda _: Grammar(without=said(SAFE, 2)[1]))
    engine = engine_on(core, grammars=grammars)
    put(engine, ask("json", SAFE, schema=Schema("{}")))
    put(engine, ask("other", SAFE))
    told = until_idle(engine)
    assert [(event.token, event.finish) for event in told["json"]] == [(said(SAFE, 1)[0], None), (None, Finish.ERROR)]
    assert isinstance(told["json"][-1].error, GrammarFailed)
    assert tokens(told["other"]) == said(SAFE, 5)


def test_a_run_that_ends_without_an_answer_fails(
    engine: VllmEngine, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM ends what it can never compute."""
    put(engine, ask("never", SAFE))
    monkeypatch.setattr(core, "step", lambda: [Progress("never/0", [], None, "length", None)])
    (event,) = until_idle(engine)["never"]
    assert (event.finish, event.token) == (Finish.ERROR, None)
    assert not core.runs


# channel -----------------------------------------------------------------------------------------------------------


class Channel(SimpleQueue[Read]):
    """Loses, doubles or turns round what is put into it; what is `late` comes with a later step."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.held: list[Read] = []

    def put(self, item: Read, block: bool = True, timeout: float | None = None) -> None:
        self.held.append(item)

    def get_nowait(self) -> Read:
        if self.fault == "late" and self.held:
            self.fault = "was late"
            return super().get_nowait()
        held, self.held = self.held, []
        if self.fault == "reordered":
            held.reverse()
        for each in [] if self.fault == "cut" else held * (2 if self.fault == "doubled" else 1):
            super().put(each)
        return super().get_nowait()


@pytest.mark.parametrize("fault", ["cut", "late", "doubled", "reordered"])
def test_no_token_is_shown_before_a_verdict_whatever_the_channel_does(fault: str) -> None:
    """What does not come with its step fails the request that it is about; order and number say nothing."""
    engine = engine_on(FakeCore(Channel(fault)), guard=Watching())
    put(engine, ask("safe", SAFE))
    put(engine, watched("watched", Mode.MONITOR))
    put(engine, ask("toxic", TOXIC))
    told = until_idle(engine)
    assert all(event.request.decision is not None for events in told.values() for event in events if event.token)
    if fault in ("cut", "late"):
        assert [(tokens(events), events[-1].finish) for events in told.values()] == [([], Finish.ERROR)] * 3
    else:
        assert tokens(told["safe"]) == said(SAFE, 5)
        assert tokens(told["watched"]) == said(SAFE, TOKENS)
        assert tokens(told["toxic"]) == [REFUSAL_TOKEN] * 5


def test_what_was_read_of_a_part_of_a_prompt_is_no_verdict(engine: VllmEngine, core: FakeCore) -> None:
    core.tells = False
    put(engine, ask("a", SAFE))
    core.channel.put(PromptRead("a/0", torch.zeros(2, 1)))
    assert [(event.token, event.finish) for event in until_idle(engine)["a"]] == [(None, Finish.ERROR)]


# answers -----------------------------------------------------------------------------------------------------------

TOKENS = 40
THRESHOLD = 30.0


class Watching(FakeGuard):
    """Reads answers as well: a token's number is what is read of it."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.answers = token_reader(threshold)


def watched(
    name: str,
    mode: Mode,
    ids: Sequence[int] = SAFE,
    *,
    hold: Hold = 0,
    tokens: int = TOKENS,
    certain: float | None = None,
) -> Ask:
    made = ask(name, ids, max_tokens=tokens)
    return replace(made, policy=replace(made.policy, output=OutputPolicy(mode, 0.5, hold, certain)))


def judged(*asks: Ask, threshold: float = THRESHOLD) -> tuple[dict[str, list[Event]], dict[str, AnswerDecision]]:
    """What was told of each request, and what became of its answer."""
    core = FakeCore(SimpleQueue[Read]())
    engine = engine_on(core, guard=Watching(threshold))
    put(engine, *asks)
    told = until_idle(engine)
    assert not core.runs
    answers = {name: events[-1].request.answer for name, events in told.items()}
    return told, {name: answer for name, answer in answers.items() if answer is not None}


def own_engine_says(
    made: Ask, threshold: float = THRESHOLD
) -> tuple[list[tuple[int | None, Finish | None]], AnswerDecision | None]:
    request = own(made)
    engine = OwnEngine(as_any(FakeBackbone()), as_any(Watching(threshold)), Scheduler(8, 1000))
    engine.add(request)
    events = []
    while not engine.idle:
        events += engine.step()
    return [(event.token, event.finish) for event in events], request.answer


@pytest.mark.parametrize(
    ("made", "threshold"),
    [
        (watched("blocked", Mode.BLOCK), THRESHOLD),
        (watched("monitored", Mode.MONITOR), THRESHOLD),
        (watched("steered", Mode.STEER, hold="all"), THRESHOLD),
        (watched("held", Mode.STEER, hold=2), THRESHOLD),
        (watched("sentence", Mode.STEER, hold="sentence"), THRESHOLD),
        (watched("passed", Mode.BLOCK), 99.0),
        (watched("short", Mode.STEER, tokens=15, hold="all"), 5.0),
        (watched("again", Mode.STEER, TOXIC), 5.0),
        (watched("again later", Mode.STEER, hold="all"), 5.0),
        (watched("begun", Mode.STEER, [*SAFE, BEGUN]), 5.0),
        (watched("certain", Mode.STEER, certain=0.55), 5.0),
        (watched("one token", Mode.BLOCK, tokens=1), THRESHOLD),
        (watched("no token", Mode.BLOCK, tokens=0), THRESHOLD),
    ],
    ids=lambda value: value.id if isinstance(value, Ask) else "",
)
def test_an_answer_is_judged_token_by_token_as_on_our_own_engine(made: Ask, threshold: float) -> None:
    told, answers = judged(made, threshold=threshold)
    expected, answer = own_engine_says(made, threshold)
    assert [(event.token, event.finish) for event in told[made.id]] == expected
    assert answers.get(made.id) == answer


def test_choices_are_watched_each_for_itself() -> None:
    told, answers = judged(watched("a", Mode.STEER, hold="all"), replace(watched("b", Mode.MONITOR), leader="a"))
    assert answers["a"].verdict is Verdict.STEERED
    assert tokens(told["a"])[-1] == REFUSAL_TOKEN
    assert answers["b"].verdict is Verdict.MONITORED
    assert tokens(told["b"]) == said(SAFE, TOKENS)


def test_a_token_that_is_not_told_of_ends_its_answer() -> None:
    engine = engine_on(FakeCore(SimpleQueue[Read](), tells_answers=False), guard=Watching())
    put(engine, watched("a", Mode.MONITOR))
    (first, second) = until_idle(engine)["a"]
    assert (first.token, second.token, second.finish) == (said(SAFE, 1)[0], None, Finish.ERROR)


def test_the_score_at_each_token_is_told_where_it_is_wanted() -> None:
    told, _ = judged(replace(watched("a", Mode.MONITOR, tokens=3), scores=True), threshold=99.0)
    request = told["a"][-1].request
    assert request.token_scores is not None
    assert len(request.answer_scores) == 3


def test_drift_can_be_told_of_prompts_and_of_answers(core: FakeCore) -> None:
    guard = FakeGuard()
    vars(guard).update(manifest=None, calibration_scores=[0.1, 0.2], answer_calibration_scores=[0.3])
    facts = engine_on(core, guard=guard).facts
    assert (facts.calibration, facts.answer_calibration) == ([0.1, 0.2], [0.3])
