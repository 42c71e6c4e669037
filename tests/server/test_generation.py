"""One request seen from the event loop: its text, its count of tokens, and exactly one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.detokenizer import TextDecoder
from server.engine_thread import Deliver, QueueFull
from server.errors import ServerFault, Unavailable
from server.generation import Generation
from server.metrics import Metrics
from server.request import EngineFailed, Event, Finish, Request, RequestFailed
from steering.policy import Decision, Mode, Verdict
from tests.server.fakes import request
from tests.server.scripted import EOS, REFUSAL, byte_tokenizer

DECODER = TextDecoder(byte_tokenizer())


class Engine:
    """Takes one request; the test delivers its events."""

    def __init__(self) -> None:
        self.deliver: Deliver = lambda events: None
        self.aborted: list[str] = []

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.deliver = deliver

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


class Full(Engine):
    def submit(self, request: Request, deliver: Deliver) -> None:
        raise QueueFull(2, 2, 1)


def started(
    verdict: Verdict = Verdict.PASS, stops: Sequence[str] = (), mode: Mode = Mode.STEER
) -> tuple[Generation, Engine, Metrics]:
    engine, metrics = Engine(), Metrics()
    made = request("r", [1, 2, 3], max_tokens=1000, mode=mode)
    made.decision = Decision(verdict, 0.75, 1.0 if verdict is Verdict.STEERED else 0.0)
    generation = Generation(made, engine, DECODER, stops, metrics)
    generation.start()
    return generation, engine, metrics


def tokens(generation: Generation, text: str) -> list[Event]:
    return [Event(generation.request, token=byte) for byte in text.encode()]


def end(generation: Generation, finish: Finish, **more: Any) -> Event:
    return Event(generation.request, finish=finish, **more)


async def text_of(generation: Generation) -> str:
    return "".join([piece async for piece in generation.texts()])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"autosteer_{name}", labels)


async def test_text_comes_in_pieces_as_it_is_delivered() -> None:
    generation, engine, metrics = started()
    pieces = aiter(generation.texts())
    for word in ("one ", "two", " thré"):
        engine.deliver(tokens(generation, word))
        assert await anext(pieces) == word
    engine.deliver([end(generation, Finish.STOP)])
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    assert (generation.finish, generation.failure, generation.tokens) == (Finish.STOP, None, 13)
    assert value(metrics, "generation_tokens_total") == 13
    assert value(metrics, "request_success_total", finished_reason="stop") == 1


async def test_a_character_split_over_tokens_is_never_shown_in_part() -> None:
    generation, engine, _ = started()
    pieces = aiter(generation.texts())
    waiting = asyncio.ensure_future(anext(pieces))
    for event in tokens(generation, "😀"):
        await asyncio.sleep(0)
        assert not waiting.done()
        engine.deliver([event])
    assert await waiting == "😀"


async def test_the_token_that_ends_an_answer_counts_and_eos_does_not() -> None:
    generation, engine, _ = started()
    *some, last = tokens(generation, "abc")
    engine.deliver([*some, Event(generation.request, token=last.token, finish=Finish.LENGTH)])
    assert (await text_of(generation), generation.tokens, generation.finish) == ("abc", 3, Finish.LENGTH)
    generation, engine, _ = started()
    engine.deliver([Event(generation.request, token=ord("a")), end(generation, Finish.STOP)])
    assert (await text_of(generation), generation.tokens) == ("a", 1)


@settings(max_examples=100, deadline=None)
@given(st.text("ab é", max_size=12), st.lists(st.text("ab é", min_size=1, max_size=3), min_size=1, max_size=3))
def test_text_ends_before_the_stop_string_that_ends_first(text: str, stops: list[str]) -> None:
    async def run() -> tuple[list[str], Generation, Engine]:
        generation, engine, _ = started(stops=stops)
        shown: list[str] = []
        for event in [*tokens(generation, text), end(generation, Finish.STOP)]:
            engine.deliver([event])
            shown.append("".join(generation._texts))  # what a reader who is quick enough has seen by now
        return shown, generation, engine

    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    shown, generation, engine = asyncio.run(run())
    assert shown[-1] == expected
    assert all(expected.startswith(part) for part in shown)
    assert generation.finish is Finish.STOP
    assert engine.aborted == (["r"] if ends else [])


async def test_a_stop_string_in_the_last_token_needs_no_abort() -> None:
    generation, engine, _ = started(stops=["c"])
    *some, last = tokens(generation, "abc")
    engine.deliver([*some, Event(generation.request, token=last.token, finish=Finish.LENGTH)])
    assert (await text_of(generation), generation.finish, engine.aborted) == ("ab", Finish.STOP, [])


async def test_a_refusal_is_said_in_full_whatever_the_stop_strings() -> None:
    generation, engine, _ = started(Verdict.STEERED, stops=["can't"])
    engine.deliver([*tokens(generation, REFUSAL), end(generation, Finish.CONTENT_FILTER)])
    assert await text_of(generation) == REFUSAL
    assert (generation.flagged, generation.finish) == (True, Finish.CONTENT_FILTER)


async def test_a_blocked_request_gets_the_policys_refusal_without_a_token() -> None:
    generation, engine, _ = started(Verdict.BLOCKED, stops=["can't"], mode=Mode.BLOCK)
    engine.deliver([end(generation, Finish.CONTENT_FILTER)])
    assert (await text_of(generation), generation.tokens) == (generation.request.policy.refusal, 0)


async def test_a_monitored_answer_is_not_flagged_to_its_reader() -> None:
    generation, engine, _ = started(Verdict.MONITORED, stops=["b"])
    engine.deliver([*tokens(generation, "abc")])
    assert (await text_of(generation), generation.flagged) == ("a", False)


@pytest.mark.parametrize(
    ("event", "failure", "code"),
    [
        ({"finish": Finish.ERROR, "error": RequestFailed("x")}, ServerFault, "generation_failed"),
        ({"finish": Finish.ERROR, "error": EngineFailed("x")}, Unavailable, "engine_failed"),
        ({"finish": Finish.ABORT}, Unavailable, "shutting_down"),
    ],
)
async def test_a_failure_is_raised_before_the_first_token_and_kept_after_it(
    event: dict[str, Any], failure: type[Exception], code: str
) -> None:
    generation, engine, _ = started()
    engine.deliver([Event(generation.request, **event)])
    with pytest.raises(failure):
        await generation.begin()

    generation, engine, _ = started()
    engine.deliver([*tokens(generation, "ab"), Event(generation.request, **event)])
    await generation.begin()
    assert await text_of(generation) == "ab"
    assert generation.failure is not None
    assert (type(generation.failure), generation.failure.code) == (failure, code)


async def test_what_an_error_holds_inside_is_not_told_to_the_client() -> None:
    generation, engine, _ = started()
    engine.deliver([end(generation, Finish.ERROR, error=RequestFailed("RuntimeError: secret inner state"))])
    assert generation.failure is not None
    assert "secret" not in generation.failure.message


async def test_abort_ends_once_and_what_comes_after_is_ignored() -> None:
    generation, engine, metrics = started()
    engine.deliver(tokens(generation, "ab"))
    generation.abort()
    generation.abort()
    engine.deliver([*tokens(generation, "cd"), end(generation, Finish.ABORT)])
    assert (await text_of(generation), generation.tokens, engine.aborted) == ("ab", 2, ["r"])
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 1


async def test_abort_after_the_end_does_nothing() -> None:
    generation, engine, _ = started()
    engine.deliver([end(generation, Finish.STOP)])
    generation.abort()
    assert (generation.finish, engine.aborted) == (Finish.STOP, [])


async def test_events_that_cannot_be_read_end_the_request_as_an_error() -> None:
    generation, engine, metrics = started()
    engine.deliver([Event(generation.request, token=-5)])
    assert await text_of(generation) == ""
    assert (generation.finish, engine.aborted) == (Finish.ERROR, ["r"])
    assert value(metrics, "request_success_total", finished_reason="error") == 1


async def test_special_tokens_have_no_text() -> None:
    generation, engine, _ = started()
    engine.deliver([Event(generation.request, token=EOS), *tokens(generation, "a"), end(generation, Finish.STOP)])
    assert await text_of(generation) == "a"


async def test_a_request_the_engine_does_not_take_is_not_counted() -> None:
    metrics = Metrics()
    generation = Generation(request("r", [1, 2, 3]), Full(), DECODER, (), metrics)
    with pytest.raises(QueueFull):
        generation.start()
    assert value(metrics, "prompt_tokens_total") == 0
