"""One request seen from the event loop: its text, its count of tokens, and exactly one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answer.choices import Choices
from server.answer.pipeline import Pipeline
from server.answer.text_decoder import TextDecoder
from server.engine.live import Deliver, QueueFull
from server.engine.wire import Parcel
from server.errors import ServerFault, Unavailable
from server.request import EngineFailed, Event, Finish, RequestFailed
from server.watch.metrics import Metrics
from steering.policy import Decision, Mode, Verdict
from tests.server.fakes import request
from tests.server.scripted import EOS, REFUSAL, byte_tokenizer

DECODER = TextDecoder(byte_tokenizer())


class Engine:
    """Takes one request; the test delivers its events."""

    def __init__(self) -> None:
        self.deliver: Deliver = lambda events: None
        self.aborted: list[str] = []

    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        self.deliver = deliver

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


class Full(Engine):
    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        raise QueueFull(2, 2, 1)


def started(
    verdict: Verdict = Verdict.PASS, stops: Sequence[str] = (), mode: Mode = Mode.STEER
) -> tuple[Choices, Engine, Metrics]:
    engine, metrics = Engine(), Metrics()
    made = request("r", [1, 2, 3], max_tokens=1000, mode=mode)
    made.decision = Decision(verdict, 0.75, 1.0 if verdict is Verdict.STEERED else 0.0)
    answer = Choices(Parcel([made]), engine, lambda _: Pipeline(DECODER, stops), metrics)
    answer.start()
    return answer, engine, metrics


def tokens(answer: Choices, text: str) -> list[Event]:
    return [Event(answer.generations[0].request, token=byte) for byte in text.encode()]


def end(answer: Choices, finish: Finish, **more: Any) -> Event:
    return Event(answer.generations[0].request, finish=finish, **more)


async def texts(answer: Choices) -> AsyncIterator[str]:
    heard = asyncio.Event()
    answer.listener = heard.set
    while True:
        heard.clear()
        for _, delta in answer.updates():
            if delta is not None:
                yield delta.text
        if answer.drained:
            return
        await heard.wait()


async def text_of(answer: Choices) -> str:
    return "".join([piece async for piece in texts(answer)])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"autosteer_{name}", labels)


async def test_text_comes_in_pieces_as_it_is_delivered() -> None:
    answer, engine, metrics = started()
    pieces = aiter(texts(answer))
    for word in ("one ", "two", " thré"):
        engine.deliver(tokens(answer, word))
        assert await anext(pieces) == word
    engine.deliver([end(answer, Finish.STOP)])
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    assert (answer.outcome, answer.failure, answer.tokens) == (Finish.STOP, None, 13)
    assert value(metrics, "generation_tokens_total") == 13
    assert value(metrics, "request_success_total", finished_reason="stop") == 1


async def test_a_character_split_over_tokens_is_never_shown_in_part() -> None:
    answer, engine, _ = started()
    pieces = aiter(texts(answer))
    waiting = asyncio.ensure_future(anext(pieces))
    for event in tokens(answer, "😀"):
        await asyncio.sleep(0)
        assert not waiting.done()
        engine.deliver([event])
    assert await waiting == "😀"


async def test_the_token_that_ends_an_answer_counts_and_eos_does_not() -> None:
    answer, engine, _ = started()
    *some, last = tokens(answer, "abc")
    engine.deliver([*some, Event(answer.generations[0].request, token=last.token, finish=Finish.LENGTH)])
    assert (await text_of(answer), answer.tokens, answer.outcome) == ("abc", 3, Finish.LENGTH)
    answer, engine, _ = started()
    engine.deliver([Event(answer.generations[0].request, token=ord("a")), end(answer, Finish.STOP)])
    assert (await text_of(answer), answer.tokens) == ("a", 1)


@given(st.text("ab é", max_size=12), st.lists(st.text("ab é", min_size=1, max_size=3), min_size=1, max_size=3))
def test_text_ends_before_the_stop_string_that_ends_first(text: str, stops: list[str]) -> None:
    async def run() -> tuple[list[str], Choices, Engine]:
        answer, engine, _ = started(stops=stops)
        shown: list[str] = []
        seen = ""
        for event in [*tokens(answer, text), end(answer, Finish.STOP)]:
            engine.deliver([event])
            seen += "".join(delta.text for delta in answer.generations[0].take())
            shown.append(seen)  # by a reader who is quick enough
        return shown, answer, engine

    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    shown, answer, engine = asyncio.run(run())
    assert shown[-1] == expected
    assert all(expected.startswith(part) for part in shown)
    assert answer.outcome is Finish.STOP
    assert engine.aborted == (["r"] if ends else [])


async def test_a_stop_string_in_the_last_token_needs_no_abort() -> None:
    answer, engine, _ = started(stops=["c"])
    *some, last = tokens(answer, "abc")
    engine.deliver([*some, Event(answer.generations[0].request, token=last.token, finish=Finish.LENGTH)])
    assert (await text_of(answer), answer.outcome, engine.aborted) == ("ab", Finish.STOP, [])


async def test_a_refusal_is_said_in_full_whatever_the_stop_strings() -> None:
    answer, engine, _ = started(Verdict.STEERED, stops=["can't"])
    engine.deliver([*tokens(answer, REFUSAL), end(answer, Finish.CONTENT_FILTER)])
    assert await text_of(answer) == REFUSAL
    assert (answer.generations[0].refused, answer.outcome) == (True, Finish.CONTENT_FILTER)


async def test_a_blocked_request_gets_the_policys_refusal_without_a_token() -> None:
    answer, engine, _ = started(Verdict.BLOCKED, stops=["can't"], mode=Mode.BLOCK)
    engine.deliver([end(answer, Finish.CONTENT_FILTER)])
    assert (await text_of(answer), answer.tokens) == (answer.generations[0].request.policy.refusal, 0)


async def test_a_monitored_answer_is_no_refusal_to_its_reader() -> None:
    answer, engine, _ = started(Verdict.MONITORED, stops=["b"])
    engine.deliver([*tokens(answer, "abc")])
    assert (await text_of(answer), answer.generations[0].refused) == ("a", False)


@pytest.mark.parametrize(
    ("event", "failure", "code"),
    [
        ({"finish": Finish.ERROR, "error": RequestFailed("x")}, ServerFault, "generation_failed"),
        ({"finish": Finish.ERROR, "error": EngineFailed("x")}, Unavailable, "engine_failed"),
        ({"finish": Finish.ABORT}, Unavailable, "shutting_down"),
    ],
)
async def test_an_answer_that_fails_before_its_first_token_has_not_begun(
    event: dict[str, Any], failure: type[Exception], code: str
) -> None:
    answer, engine, _ = started()
    engine.deliver([Event(answer.generations[0].request, **event)])
    assert answer.decided.is_set()
    assert answer.failed_before_output
    assert type(answer.failure) is failure

    answer, engine, _ = started()
    engine.deliver([*tokens(answer, "ab"), Event(answer.generations[0].request, **event)])
    assert answer.decided.is_set()
    assert not answer.failed_before_output
    assert await text_of(answer) == "ab"
    assert answer.failure is not None
    assert (type(answer.failure), answer.failure.code) == (failure, code)


async def test_what_an_error_holds_inside_is_not_told_to_the_client() -> None:
    answer, engine, _ = started()
    engine.deliver([end(answer, Finish.ERROR, error=RequestFailed("RuntimeError: secret inner state"))])
    assert answer.failure is not None
    assert "secret" not in answer.failure.message


async def test_abort_ends_once_and_what_comes_after_is_ignored() -> None:
    answer, engine, metrics = started()
    engine.deliver(tokens(answer, "ab"))
    answer.abort()
    answer.abort()
    engine.deliver([*tokens(answer, "cd"), end(answer, Finish.ABORT)])
    assert (await text_of(answer), answer.tokens, engine.aborted) == ("ab", 2, ["r"])
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 1


async def test_abort_after_the_end_does_nothing() -> None:
    answer, engine, _ = started()
    engine.deliver([end(answer, Finish.STOP)])
    answer.abort()
    assert (answer.outcome, engine.aborted) == (Finish.STOP, [])


async def test_events_that_cannot_be_read_end_the_request_as_an_error() -> None:
    answer, engine, metrics = started()
    engine.deliver([Event(answer.generations[0].request, token=-5)])
    assert await text_of(answer) == ""
    assert (answer.outcome, engine.aborted) == (Finish.ERROR, ["r"])
    assert value(metrics, "request_success_total", finished_reason="error") == 1


async def test_special_tokens_have_no_text() -> None:
    answer, engine, _ = started()
    engine.deliver([Event(answer.generations[0].request, token=EOS), *tokens(answer, "a"), end(answer, Finish.STOP)])
    assert await text_of(answer) == "a"


async def test_a_request_the_engine_does_not_take_is_not_counted() -> None:
    metrics = Metrics()
    answer = Choices(Parcel([request("r", [1, 2, 3])]), Full(), lambda _: Pipeline(DECODER), metrics)
    with pytest.raises(QueueFull):
        answer.start()
    assert value(metrics, "prompt_tokens_total") == 0
