"""The stages of an answer: what the guard does in the middle of one, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.sampling import Logprobs
from server.answer.delta import Delta, Kind, merged
from server.answer.generation import Generation
from server.answer.pipeline import Pipeline
from server.answer.text_decoder import TextDecoder
from server.request import Event, Finish
from server.watch.metrics import Metrics
from tests.server.fakes import request
from tests.server.scripted import byte_tokenizer

DECODER = TextDecoder(byte_tokenizer())


def pushed(pipeline: Pipeline, text: str) -> list[Delta]:
    found: list[Delta] = []
    for byte in text.encode():
        found += pipeline.push(byte, Logprobs(-1.0, []))
    return found


def said(deltas: Sequence[Delta]) -> list[tuple[Kind, str]]:
    return [(delta.kind, delta.text) for delta in merged(deltas)]


def test_an_answer_is_text_until_the_guard_acts_and_a_refusal_from_there_on() -> None:
    pipeline = Pipeline(DECODER, ["STOP"])
    deltas = pushed(pipeline, "so far")
    deltas += [*pipeline.refuse(), *pushed(pipeline, "no, STOP"), *pipeline.say("Ask me"), *pipeline.finish()]
    assert said(deltas) == [(Kind.TEXT, "so far\n\n"), (Kind.REFUSAL, "no, STOP\n\nAsk me")]
    assert not pipeline.stopped  # stop strings are the client's, for its answer


def test_what_is_held_back_when_the_guard_acts_is_never_shown() -> None:
    pipeline = Pipeline(DECODER, ["STOP"], logprobs=True)
    deltas = pushed(pipeline, "a STO")
    assert said(deltas) == [(Kind.TEXT, "a ")]
    pipeline.refuse()
    deltas += [*pushed(pipeline, "no"), *pipeline.finish()]
    assert said(deltas) == [(Kind.TEXT, "a "), (Kind.REFUSAL, "no")]
    assert b"".join(entry.data for delta in deltas for entry in delta.entries) == b"a no"


def test_neighbours_of_one_kind_are_one_delta() -> None:
    a, b, c = Delta(Kind.TEXT, "a"), Delta(Kind.TEXT, "b"), Delta(Kind.REFUSAL, "c")
    assert said([a, b, c, a]) == [(Kind.TEXT, "ab"), (Kind.REFUSAL, "c"), (Kind.TEXT, "a")]
    assert merged([]) == []


@pytest.mark.parametrize("keep", [False, True])
def test_the_text_is_kept_only_where_that_is_wished(keep: bool) -> None:
    made = request("r", [1], max_tokens=100)
    generation = Generation(0, made, Pipeline(DECODER), Metrics(), keep=keep)
    for byte in b"some words":
        generation.deliver(Event(made, token=byte))
        generation.take()
    generation.deliver(Event(made, finish=Finish.LENGTH))
    assert generation.kept == (list("some words") if keep else None)
