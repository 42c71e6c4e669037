"""The load generator's client: streams cut anywhere, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from benchmarks.canned import HEAD, LAST, Canned, chunk, events, parts, sse
from benchmarks.client import Answer, AnswerError, Connection, request_bytes
from benchmarks.load import closed_load, open_load
from tests.waiting import until

TOKENS = 5


@asynccontextmanager
async def served(pieces: Sequence[bytes]) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: Canned(pieces), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def ask(pieces: Sequence[bytes]) -> Answer:
    async with served(pieces) as url:
        connection = await Connection.open(url)
        try:
            return await connection.ask(request_bytes(url, {"n": 1}))
        finally:
            connection.close()


def whole(response: Sequence[bytes]) -> bytes:
    return b"".join([HEAD, *map(chunk, response), LAST])


def fed(*pieces: bytes) -> Connection:
    """A connection that has received these."""
    connection = Connection()
    for piece in pieces:
        connection.data_received(piece)
    return connection


async def test_an_answer_over_a_socket() -> None:
    answer = await ask(parts(TOKENS))
    assert (answer.tokens, answer.prompt_tokens, answer.finish) == (TOKENS, 100, "length")
    assert len(answer.marks) == TOKENS
    assert answer.due <= answer.marks[0] <= answer.marks[-1] <= answer.ended
    assert answer.first_token == answer.marks[0] - answer.due


def test_wherever_a_stream_is_cut_it_is_read_alike() -> None:
    data = whole(events(TOKENS))
    expected = fed(data)._read(0.0)
    assert expected.tokens == len(expected.marks) == TOKENS
    for cut in range(1, len(data)):
        found = fed(data[:cut], data[cut:])._read(0.0)
        assert (len(found.marks), found.tokens, found.finish) == (TOKENS, TOKENS, "length")
    assert len(fed(*(data[place : place + 1] for place in range(len(data))))._read(0.0).marks) == TOKENS


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_http_chunks_need_not_be_events(size: int) -> None:
    stream = b"".join(events(TOKENS))
    found = fed(whole([stream[place : place + size] for place in range(0, len(stream), size)]))._read(0.0)
    assert (len(found.marks), found.tokens) == (TOKENS, TOKENS)


def test_what_is_content_and_what_is_not() -> None:
    def delta(text: str) -> bytes:
        return b'data: {"choices":[{"index":0,"delta":' + text.encode() + b"}]}"

    lines = [
        delta('{"role":"assistant","content":""}'),
        b": keep-alive",
        delta('{"content":"one"}'),
        delta('{"content": "spaced"}'),
        delta('{"content":"\\"quoted\\""}'),
        delta('{"content":null}'),
        delta('{"reasoning_content":"thought"}'),
        delta("{}"),
    ]
    for end in (b"\n\n", b"\r\n\r\n"):
        assert len(fed(whole([line + end for line in lines]))._read(0.0).marks) == 3


def test_without_usage_pieces_are_counted() -> None:
    found = fed(whole(events(TOKENS)[:-2]))._read(0.0)
    assert (found.tokens, found.prompt_tokens, found.finish) == (TOKENS, None, "length")


async def test_a_connection_is_used_again() -> None:
    async with served(parts(TOKENS)) as url:
        connection = await Connection.open(url)
        for _ in range(3):
            assert (await connection.ask(request_bytes(url, {}))).tokens == TOKENS
        assert not connection.closed
        connection.close()


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b'HTTP/1.1 429 X\r\ncontent-length: 16\r\n\r\n{"error":"busy"}'], "status 429.*busy"),
        ([HEAD, chunk(sse({"error": {"message": "broken"}})), LAST], "broken"),
        ([HEAD, chunk(sse(b"[DONE]")), LAST], "without content"),
        ([b"nonsense\r\n\r\n"], "."),
    ],
)
async def test_what_is_no_answer_is_an_error(pieces: list[bytes], reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        await ask(pieces)


@pytest.mark.chance
async def test_a_connection_that_breaks_is_an_error_and_a_cancelled_one_is_closed() -> None:
    async with served([HEAD, chunk(events(1)[0])]) as url:
        connection = await Connection.open(url)
        waiting = asyncio.create_task(connection.ask(request_bytes(url, {})))
        await until(lambda: connection._others, "the first piece")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert connection.closed
        connection = await Connection.open(url)
        waiting = asyncio.create_task(connection.ask(request_bytes(url, {})))
        await until(lambda: connection._others, "the first piece")
        connection.close()
        with pytest.raises(AnswerError, match="closed"):
            await waiting


@pytest.mark.chance
def test_loads_answer_every_request() -> None:
    async def loads() -> None:
        async with served(parts(TOKENS)) as url:
            requests = [request_bytes(url, {})]
            closed = await asyncio.to_thread(closed_load, url, requests, clients=3, count=7)
            opened = await asyncio.to_thread(open_load, url, requests, rate=500.0, count=7)
        for load in (closed, opened):
            assert len(load.answers) == len(load.first_token) == 7
            assert load.tokens == 7 * TOKENS
            assert len(load.between_tokens) == 7 * (TOKENS - 1)
            assert load.tokens_per_second == load.tokens / load.seconds
            assert all(first >= 0 for first in load.first_token)

    asyncio.run(loads())
