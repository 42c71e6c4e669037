"""Text, stop strings and log-probabilities of any stream of tokens: nothing leaks, nothing breaks, all agrees."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from models.sampling import Logprobs
from server.answer.delta import Delta, Kind, joined
from server.answer.generation import Generation
from server.answer.pipeline import Pipeline
from server.answer.text_decoder import TextDecoder
from server.request import Event, Finish
from server.watch.metrics import Metrics
from steering.policy import Verdict
from tests.models.test_vocabulary import sentencepiece
from tests.server.fakes import request
from tests.server.scripted import (
    REFUSAL,
    Script,
    ScriptedRunner,
    byte_characters,
    chat,
    content_of,
    error_of,
    events_of,
    serving,
)

STREAMS = 10_000
TEXTS = ["", "STOP", "ST", "OP", "é", "😀", "日本", " a", "\n", "a", "b", "\ufffd", "STO", "S", "T", "e\u0301"]


def pieces_tokenizer() -> Any:
    """Byte-level: every byte, and pieces of two and three bytes that begin and end anywhere within characters."""
    stand_in = byte_characters()
    sources = ["STOP STO é😀日本 a\n\ufffd".encode(), bytes([0xE2, 0x82, 0xF0, 0x9F, 0xFF, 0xC3])]
    pieces = {bytes([byte]) for byte in range(256)}
    for source in sources:
        pieces |= {source[at : at + size] for size in (2, 3) for at in range(len(source) - size + 1)}
    names = {"".join(stand_in[byte] for byte in piece): number for number, piece in enumerate(sorted(pieces))}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=names, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tokens_of(data: bytes, by_bytes: dict[bytes, int], rng: random.Random) -> list[int]:
    """The bytes as tokens, cut at random."""
    tokens: list[int] = []
    at = 0
    while at < len(data):
        sizes = [size for size in (1, 2, 3) if data[at : at + size] in by_bytes and at + size <= len(data)]
        size = rng.choice(sizes)
        tokens.append(by_bytes[data[at : at + size]])
        at += size
    return tokens


def heard(decoder: TextDecoder, tokens: list[int], stops: list[str]) -> tuple[list[Delta], Generation]:
    """What a reader gets after each token, and the generation at its end."""
    made = request("r", [1], max_tokens=1000, logprobs=1)
    generation = Generation(0, made, Pipeline.of(made, decoder, stops), METRICS)
    pieces: list[Delta] = []
    for token in tokens:
        if generation.finish is None:
            generation.deliver(Event(made, token=token, logprobs=Logprobs(-1.0, [(token, -1.0)])))
            pieces.append(joined(generation.take(), Kind.TEXT))
    if generation.finish is None:
        generation.deliver(Event(made, finish=Finish.LENGTH))
        pieces.append(joined(generation.take(), Kind.TEXT))
    return pieces, generation


METRICS = Metrics()


def test_any_stream_of_byte_level_tokens() -> None:
    """10,000 streams: no part of a stop string, no broken character, and the tokens' bytes are the text's."""
    decoder = TextDecoder(pieces_tokenizer())
    by_bytes = {decoder.vocabulary.bytes_of(token): token for token in range(decoder.vocabulary.size - 1)}
    rng = random.Random(5)
    stopped = broken = 0
    for _ in range(STREAMS):
        # "\ufffd" is among the texts: where the model says it, it is shown. Elsewhere it would be a broken character.
        data = b"".join(rng.choice(TEXTS).encode() for _ in range(rng.randint(0, 8)))
        valid = rng.random() < 0.6
        if not valid:  # any bytes at all, within and around what is text
            noise = bytes(
                rng.choice([0xE2, 0x82, 0xF0, 0x9F, 0xFF, 0xC3, 0xA9, 0x41]) for _ in range(rng.randint(1, 5))
            )
            at = rng.randint(0, len(data))
            data = data[:at] + noise + data[at:]
        stops = [rng.choice(TEXTS[1:]) for _ in range(rng.choice([0, 1, 1, 2]))]
        text = data.decode(errors="replace")
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(ends)[1]] if ends else text

        pieces, generation = heard(decoder, tokens_of(data, by_bytes, rng), stops)
        shown = ""
        for piece in pieces:
            shown += piece.text
            assert expected.startswith(shown)
        assert shown == expected
        assert generation.finish is (Finish.STOP if ends else Finish.LENGTH)
        found = b"".join(entry.data for entry in joined(pieces, Kind.TEXT).entries)
        assert found.decode(errors="replace") == expected
        if valid:
            assert found == expected.encode()
        stopped += bool(ends)
        broken += not valid
    assert min(stopped, broken) > STREAMS / 10


def test_a_token_that_a_stop_string_cuts_apart_shows_its_first_part_alone() -> None:
    decoder = TextDecoder(pieces_tokenizer())
    by_bytes = {decoder.vocabulary.bytes_of(token): token for token in range(decoder.vocabulary.size - 1)}
    tokens = [by_bytes[piece] for piece in (b"a", b" ST", b"OP")]
    pieces, _ = heard(decoder, tokens, ["STOP"])
    assert [piece.text for piece in pieces] == ["a", " ", ""]
    assert [[entry.data for entry in piece.entries] for piece in pieces] == [[b"a"], [], [b" "]]


def test_tokens_of_a_sentencepiece_tokenizer() -> None:
    """The space in front of the first word is no part of the text; byte tokens that are no character are broken."""
    decoder = TextDecoder(sentencepiece())
    pieces, _ = heard(decoder, [1, 1, 3, 4, 2, 5], [])
    said = joined(pieces, Kind.TEXT)
    assert said.text == "the the\ufffd\ufffdcat é"
    assert [entry.data for entry in said.entries] == [b"the", b" the", b"\xe2", b"\n", b"cat ", "é".encode()]


def test_special_tokens_have_no_entry() -> None:
    decoder = TextDecoder(pieces_tokenizer())
    by_bytes = {decoder.vocabulary.bytes_of(token): token for token in range(decoder.vocabulary.size - 1)}
    special = decoder.vocabulary.size - 1
    pieces, generation = heard(decoder, [by_bytes[b"a"], special, by_bytes[b"b"]], [])
    assert [entry.data for entry in joined(pieces, Kind.TEXT).entries] == [b"a", b"b"]
    assert generation.tokens == 3


# over HTTP ---------------------------------------------------------------------------------------------------------


def entry(byte: int, top: int) -> dict[str, Any]:
    """What the scripted engine reports of a byte, in OpenAI's shape."""

    def one(token: int) -> dict[str, Any]:
        return {"token": bytes([token]).decode(errors="replace"), "logprob": -token / 256, "bytes": [token]}

    return {**one(byte), "top_logprobs": [one(other) for other in range(byte, byte + top)]}


@pytest.mark.parametrize("top", [None, 0, 2])
async def test_log_probabilities_whole_and_streamed(top: int | None) -> None:
    async with serving(ScriptedRunner()) as client:
        whole = (await chat(client, "hé STOP", logprobs=True, top_logprobs=top, stop=" STOP")).json()["choices"][0]
        response = await chat(client, "hé STOP", logprobs=True, top_logprobs=top, stop=" STOP", stream=True)
    expected = [entry(byte, top or 0) for byte in "hé".encode()]
    assert whole["logprobs"] == {"content": expected, "refusal": None}
    first, *rest, last = [chunk["choices"][0] for chunk in events_of(response.text)]
    assert (first["logprobs"], last["logprobs"]) == (None, None)
    for choice in rest:  # in step with the text
        said = bytes(byte for token in choice["logprobs"]["content"] for byte in token["bytes"])
        assert said.decode() == choice["delta"]["content"]
    assert [token for choice in rest for token in choice["logprobs"]["content"]] == expected


async def test_each_choice_has_its_own() -> None:
    async with serving(ScriptedRunner()) as client:
        choices = (await chat(client, "ab", logprobs=True, n=2)).json()["choices"]
        events = events_of((await chat(client, "ab", logprobs=True, n=2, stream=True)).text)
    for index in range(2):
        assert [token["token"] for token in choices[index]["logprobs"]["content"]] == ["a", "b"]
        streamed = [
            token["token"]
            for event in events
            for choice in event["choices"]
            if choice["index"] == index and choice["logprobs"]
            for token in choice["logprobs"]["content"]
        ]
        assert streamed == ["a", "b"]


@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
@pytest.mark.parametrize("apart", [False, True])
async def test_of_a_refusal_where_its_text_is_and_none_of_one_that_was_not_generated(
    verdict: Verdict, apart: bool
) -> None:
    said = REFUSAL if verdict is Verdict.STEERED else ""
    script = Script.saying(said, verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    options: dict[str, Any] = {"response_format": {"type": "json_object"}} if apart else {}
    async with serving(ScriptedRunner(answer=lambda _: script)) as client:
        choice = (await chat(client, logprobs=True, **options)).json()["choices"][0]
        events = events_of((await chat(client, logprobs=True, stream=True, **options)).text)
    place, other = ("refusal", "content") if apart else ("content", "refusal")
    expected = [entry(byte, 0) for byte in said.encode()]
    assert choice["message"][place] == content_of(events, place) == REFUSAL
    assert (choice["logprobs"][place], choice["logprobs"][other] or None) == (expected, None)
    streamed = [event["choices"][0]["logprobs"] for event in events[1:-1]]
    assert [token for logprobs in streamed for token in logprobs[place]] == expected
    assert all(logprobs[other] is None for logprobs in streamed)


async def test_a_tokenizer_that_tidies_its_text_has_none() -> None:
    runner = ScriptedRunner()
    async with serving(runner) as client:
        (await chat(client)).raise_for_status()
        client_app: Any = client
        served = client_app._transport.app.state.service.served
        served.decoder.cleans_up = True
        assert error_of(await chat(client, logprobs=True), 400)["param"] == "logprobs"
