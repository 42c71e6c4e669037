"""Answers that are watched: when one is flagged, what the engine does then, and that nobody else notices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Ask, Finish, Schema
from steering.answers import AnswerReader
from steering.guard import Guard
from steering.policy import AnswerDecision, Fallback, Hold, Mode, OutputPolicy, Policy, Verdict, is_flagged
from steering.shadow import Shadow
from tests.reference import answers as reference
from tests.reference import stock
from tests.server.engine.test_engine import HARMFUL, HARMLESS, engine_of, expected, run
from tests.server.engine.test_engine_on_models import chat_request, serve
from tests.server.engine.test_followers import begun
from tests.server.fakes import BEGUN, REFUSAL_TOKEN, FakeBackbone, FakeGuard, as_any, ask, own, policy
from tests.server.guards import random_answers, random_guard, rising, token_reader
from tests.tiny import TinyModels

TOKENS = 40
THRESHOLD = 30.0  # of the tokens' own numbers, which the fake backbone shows the reader


class Watching(FakeGuard):
    """Reads answers as well: a token's number is what is read of it."""

    def __init__(self, reader: AnswerReader | None = None) -> None:
        self.answers = reader or token_reader(THRESHOLD)


def watched(
    name: str,
    mode: Mode,
    ids: Sequence[int] = HARMLESS,
    *,
    hold: Hold = 0,
    tokens: int = TOKENS,
    schema: bool = False,
    certain: float | None = None,
) -> OwnRequest:
    """A request whose answer is watched, and that ends by itself only at its limit of tokens."""
    made = ask(name, ids, max_tokens=tokens, schema=Schema("{}") if schema else None)
    return own(replace(made, policy=replace(policy(), output=OutputPolicy(mode, 0.5, hold, certain))))


def tokens_until_flagged(ids: Sequence[int] = HARMLESS) -> int:
    """How many tokens of the fake model's answer are read before its score reaches the threshold."""
    said = expected(list(ids), TOKENS)
    return next(n for n in range(1, TOKENS + 1) if reference.raw([float(each) for each in said[:n]], 1) >= THRESHOLD)


def answer_of(request: OwnRequest) -> AnswerDecision:
    assert request.answer is not None
    return request.answer


def test_an_answer_is_flagged_by_the_token_that_the_slow_reader_flags() -> None:
    blocked, neighbour = watched("a", Mode.BLOCK), watched("b", Mode.OFF)
    events = run(engine_of(FakeBackbone(), Watching()), blocked, neighbour)
    count = tokens_until_flagged()
    assert 2 < count < TOKENS
    assert answer_of(blocked).verdict is Verdict.BLOCKED
    assert (answer_of(blocked).tokens, answer_of(blocked).reason) == (count, Fallback.MODE)
    assert [event.token for event in events["a"]] == [*expected(HARMLESS, count), None]
    assert events["a"][-1].finish is Finish.CONTENT_FILTER
    assert neighbour.output_ids == expected(HARMLESS, TOKENS)
    assert neighbour.answer is None


def test_an_answer_that_is_only_monitored_goes_on_and_is_counted_once() -> None:
    request = watched("a", Mode.MONITOR)
    events = run(engine_of(FakeBackbone(), Watching()), request)["a"]
    assert request.output_ids == expected(HARMLESS, TOKENS)
    assert answer_of(request).verdict is Verdict.MONITORED
    assert answer_of(request).tokens == tokens_until_flagged()
    assert [event.token for event in events].count(None) == 2  # that it is flagged, and its end
    assert events[-1].finish is Finish.LENGTH


def test_a_flagged_answer_begins_anew_under_the_head_and_ends_as_a_refusal() -> None:
    backbone = FakeBackbone()
    request = watched("a", Mode.STEER, hold="all", tokens=TOKENS)
    reader = token_reader(THRESHOLD)
    events = run(engine_of(backbone, Watching(reader)), request)["a"]
    count = tokens_until_flagged()
    tokens = [event.token for event in events]
    assert tokens[: count + 1] == [*expected(HARMLESS, count), None]
    assert tokens[count + 1 : count + 1 + TOKENS] == [REFUSAL_TOKEN] * TOKENS
    assert request.output_ids == [REFUSAL_TOKEN] * TOKENS
    assert answer_of(request).verdict is Verdict.STEERED
    assert events[-1].finish is Finish.CONTENT_FILTER
    assert backbone.rows == []


@pytest.mark.parametrize(("hold", "kept"), [(0, None), (2, None), ("all", 0), ("sentence", None)])
def test_what_was_shown_counts_among_the_tokens_of_the_answer(hold: Hold, kept: int | None) -> None:
    request = watched("a", Mode.STEER, hold=hold)
    run(engine_of(FakeBackbone(), Watching()), request)
    count = tokens_until_flagged()
    shown = count - (hold if isinstance(hold, int) else 0) if kept is None else kept
    assert request.kept == shown
    assert len(request.output_ids) == TOKENS - shown


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (watched("short", Mode.STEER, tokens=15, hold="all"), Fallback.SHORT),
        (watched("steered", Mode.STEER, HARMFUL), Fallback.AGAIN),
        (watched("json", Mode.STEER, schema=True), Fallback.GRAMMAR),
        (watched("begun", Mode.STEER, [*HARMLESS, BEGUN]), Fallback.PREFILL),
        (watched("certain", Mode.STEER, certain=0.55), Fallback.CERTAIN),
    ],
    ids=["short", "again", "json", "begun", "certain"],
)
def test_where_no_refusal_can_follow_the_answer_ends_at_once(request_: OwnRequest, reason: Fallback) -> None:
    # The refusal's own tokens are above this threshold, so that a steered answer is flagged again.
    events = run(engine_of(FakeBackbone(), Watching(token_reader(5.0))), request_)[request_.id]
    assert answer_of(request_).reason is reason
    assert answer_of(request_).verdict is Verdict.BLOCKED
    assert events[-1].finish is Finish.CONTENT_FILTER


def test_a_refusal_that_is_flagged_again_ends() -> None:
    request = watched("a", Mode.STEER, hold="all")
    run(engine_of(FakeBackbone(), Watching(token_reader(5.0))), request)
    assert (answer_of(request).verdict, answer_of(request).reason) == (Verdict.BLOCKED, Fallback.AGAIN)


def test_an_answer_goes_on_as_a_refusal_where_it_is_flagged_and_not_for_certain() -> None:
    request = watched("a", Mode.STEER, hold="all", certain=1.0)
    run(engine_of(FakeBackbone(), Watching()), request)
    assert 0.5 < answer_of(request).score < 1.0
    assert answer_of(request).verdict is Verdict.STEERED


class Raising(AnswerReader):
    """Cannot read."""

    def read(self, states: Tensor) -> Tensor:
        raise RuntimeError(f"{len(states)} states are too many")


class Missing(AnswerReader):
    """Reads what is no number."""

    def read(self, states: Tensor) -> Tensor:
        return torch.full((len(states), 1), torch.nan)


@pytest.mark.parametrize("kind", [Raising, Missing])
def test_an_answer_that_cannot_be_read_is_flagged_and_its_neighbours_go_on(kind: type[AnswerReader]) -> None:
    reader = kind(1, (1,), 1)
    reader.calibrate(rising(0.0, 50.0), 1.0, 0.0)
    request, neighbour = watched("a", Mode.STEER, hold=16), watched("b", Mode.OFF)
    events = run(engine_of(FakeBackbone(), Watching(reader)), request, neighbour)
    assert [event.token for event in events["a"]] == [expected(HARMLESS, 1)[0], None]
    assert answer_of(request).reason is Fallback.UNREADABLE
    assert is_flagged(answer_of(request).score, 1.0)
    assert neighbour.output_ids == expected(HARMLESS, TOKENS)


def test_nothing_is_read_where_nobody_watches() -> None:
    backbone = FakeBackbone()
    run(engine_of(backbone, Watching()), watched("a", Mode.OFF), watched("b", Mode.OFF))
    assert not any(backbone.watched)
    run(engine_of(backbone, Watching(token_reader(99.0))), watched("c", Mode.MONITOR, tokens=3))
    assert backbone.watched[-4:] == [False, True, True, True]  # the prompt, and each token, the last one's too


def test_the_last_token_is_read_before_the_answer_ends() -> None:
    said = expected(HARMLESS, TOKENS)
    count = tokens_until_flagged()
    request = watched("a", Mode.BLOCK, tokens=count)
    events = run(engine_of(FakeBackbone(), Watching()), request)["a"]
    assert [event.token for event in events] == [*said[:count], None]
    assert events[-1].finish is Finish.CONTENT_FILTER
    request = watched("a", Mode.BLOCK, tokens=count - 1)
    events = run(engine_of(FakeBackbone(), Watching()), request)["a"]
    assert (events[-1].finish, events[-1].token) == (Finish.LENGTH, None)
    assert (answer_of(request).verdict, answer_of(request).tokens) == (Verdict.PASS, count - 1)


def test_an_answer_that_gave_up_its_row_is_read_on_where_it_was() -> None:
    backbone = FakeBackbone(room=60)
    engine = engine_of(backbone, Watching(token_reader(99.0)))
    requests = [watched(str(number), Mode.BLOCK, [10 + number]) for number in range(3)]
    run(engine, *requests)
    assert engine.scheduler.preemptions > 0
    for number, request in enumerate(requests):
        assert request.output_ids == expected([10 + number], TOKENS)
        assert answer_of(request).tokens == TOKENS


# a shadow ----------------------------------------------------------------------------------------------------------


def candidate(guard: FakeGuard, threshold: float = 0.5) -> Shadow:
    return Shadow("candidate", as_any(guard), 0.5, answer_threshold=threshold)


@pytest.mark.parametrize("acting", [FakeGuard(), Watching(token_reader(99.0))], ids=["of prompts", "of both"])
def test_a_shadow_reads_answers_whether_or_not_the_acting_guard_does(acting: FakeGuard) -> None:
    mode = Mode.OFF if acting.answers is None else Mode.MONITOR
    requests = [watched("a", mode), watched("b", mode, HARMFUL)]
    engine = engine_of(FakeBackbone(), acting, shadow=candidate(Watching()))
    run(engine, *requests)
    assert requests[0].output_ids == expected(HARMLESS, TOKENS)
    judged = requests[0].shadow_answer
    assert judged is not None
    assert (judged.verdict, judged.reason) == (Verdict.MONITORED, None)
    said = [float(each) for each in expected(HARMLESS, judged.tokens)]
    assert judged.tokens == TOKENS - (mode is Mode.OFF)  # whose last token nobody else needs
    assert judged.score == pytest.approx(reference.score(reference.raw(said, 1), rising(-20.0, 80.0), 1.0, 0.0))
    assert requests[1].shadow_answer is None, "a refusal under the acting guard's head is no answer to judge"
    if acting.answers is not None:
        assert answer_of(requests[0]).verdict is Verdict.PASS


def test_a_shadow_reads_no_more_of_an_answer_that_the_acting_guard_stops() -> None:
    requests = [watched("a", Mode.STEER, hold="all"), watched("b", Mode.BLOCK)]
    run(engine_of(FakeBackbone(), Watching(), shadow=candidate(Watching(token_reader(99.0)))), *requests)
    for request in requests:
        assert request.shadow_answer is not None
        assert request.shadow_answer.tokens == tokens_until_flagged()
        assert request.shadow_answer.verdict is Verdict.PASS
        assert answer_of(request).flagged


def test_a_shadow_that_cannot_read_judges_no_answer_and_stops_none() -> None:
    request = watched("a", Mode.BLOCK, tokens=4)
    run(
        engine_of(FakeBackbone(), Watching(token_reader(99.0)), shadow=candidate(Watching(Raising(1, (1,), 1)))),
        request,
    )
    assert request.output_ids == expected(HARMLESS, 4)
    assert answer_of(request).verdict is Verdict.PASS
    assert request.shadow_answer is None


# on models ---------------------------------------------------------------------------------------------------------

POLICY = Policy("default", Mode.MONITOR, 1.0, 1.0, "No.", output=OutputPolicy(Mode.MONITOR, 1.0))


def slow_score(guard: Guard, model: Any, request: OwnRequest) -> float:
    """The score of a whole answer, of the stock model's states of prompt and answer in one pass."""
    assert guard.answers is not None
    assert request.decision is not None
    assert request.decision.score is not None
    states = stock.answer_states(model, request.prompt.ids, request.output_ids, guard.answers.layers)
    numbers = reference.numbers(
        states.flatten(1).tolist(),
        guard.answers.weight[0].tolist(),
        float(guard.answers.bias),
        float(guard.answers.prompt_weight),
        request.decision.score,
    )
    return reference.score(reference.raw(numbers, guard.answers.window), rising(-3.0, 3.0), 1.0, 0.0)


def asks_for(backbone: Backbone, tokens: int = 12) -> list[Ask]:
    """Three answers to one long prompt, and one to a short one."""
    long, short = (backbone.inputs.build_text("A red square lies left of a blue circle. " * n) for n in (14, 1))
    assert len(long.ids) > 64
    sampled = [SamplingParams(temperature=0.0), *(SamplingParams(temperature=0.8, seed=seed) for seed in (1, 2))]
    choices = [
        Ask(f"long{n}", long, each, tokens, POLICY, leader="long0" if n else None) for n, each in enumerate(sampled)
    ]
    return [*choices, Ask("short", short, SamplingParams(temperature=0.0), tokens, POLICY)]


@pytest.mark.parametrize("family", ["gemma3", "llama"], indirect=True)
def test_a_score_is_that_of_the_whole_answer_at_once_however_it_was_computed(
    tiny_models: TinyModels, remembering: Backbone, family: str
) -> None:
    """In chunks, beside others, as one of several choices, after giving up its row, of a prompt that is known."""
    guard = random_guard(remembering.info, answers=random_answers(remembering.info))
    model = stock.load_model(family, tiny_models.folder(family))
    scores = []
    for turn in range(2):
        engine = OwnEngine(remembering, guard, Scheduler(8, 20))
        requests = begun(engine, asks_for(remembering))
        for step in range(200):
            engine.step()
            running = [each for each in engine.scheduler.running.values() if len(each.output_ids) == 5]
            if turn and running and not engine.scheduler.preemptions:
                engine.scheduler._preempt(running[0], engine._rows)
            if engine.idle:
                break
            assert step < 150
        assert bool(engine.scheduler.preemptions) == bool(turn)
        for request in requests:
            assert answer_of(request).tokens == len(request.output_ids)
            assert answer_of(request).score == pytest.approx(slow_score(guard, model, request), abs=1e-4)
        scores += [answer_of(request).score for request in requests]
    assert len({round(score, 3) for score in scores}) > 3


class Once(AnswerReader):
    """Flags what it reads first, and nothing after it."""

    reads = 0

    def read(self, states: Tensor) -> Tensor:
        self.reads += 1
        return torch.full((len(states), 1), 100.0 if self.reads < 3 else -100.0)


@pytest.mark.parametrize("family", ["gemma3", "llama"], indirect=True)
def test_rows_beside_an_answer_that_is_flagged_keep_every_bit(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requests(threshold: float) -> list[tuple[int, OwnRequest]]:
        acting = replace(POLICY, output=OutputPolicy(Mode.STEER, threshold, "all"))
        flagged = own(replace(chat_request(backbone, "text", acting, row="flagged").ask, max_tokens=30))
        plain = replace(POLICY, output=OutputPolicy())
        return [(0, flagged), *((0, chat_request(backbone, name, plain)) for name in ("text", "turns"))]

    logits = []
    for threshold, verdict in ((1.0, Verdict.PASS), (0.5, Verdict.STEERED)):
        reader = Once(backbone.info.hidden_size, (1, 3), 1)
        reader.calibrate(rising(-1000.0, 1000.0), 1.0, 0.0)
        arrivals = requests(threshold)
        logits.append(serve(backbone, random_guard(backbone.info, answers=reader), monkeypatch, arrivals))
        assert answer_of(arrivals[0][1]).verdict is verdict
    for name in ("text", "turns"):
        assert len(logits[0][name]) > 5
        assert torch.equal(logits[0][name], logits[1][name])
    assert not torch.equal(logits[0]["flagged"][:6], logits[1]["flagged"][:6])
