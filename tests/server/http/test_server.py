"""The real HTTP server on a socket, over a scripted engine: slow heads, endless heads, and what a drain looks like."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import AsyncMock

import httpx
import orjson
import pytest

from server.cli.main import listen
from server.http import protocol as http_protocol
from server.http.connections import connections_within
from server.http.pace import LARGE_BYTES
from server.http.protocol import BoundedHttpProtocol
from server.http.server import HttpServer
from server.settings.schema import Settings
from tests.server.fakes import as_any
from tests.server.scripted import Script, ScriptedRunner, application, body, content_of, error_of, events_of
from tests.waiting import until

pytestmark = pytest.mark.chance

# A body that never ends, on a route that answers before it is read.
UNFINISHED = b"POST /nowhere HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{"


@asynccontextmanager
async def server(runner: ScriptedRunner, **options: Any) -> AsyncIterator[tuple[HttpServer, str]]:
    """A server that runs, and its URL; it is ended at the end."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    started = asyncio.Event()
    app = application(runner, **options)
    http = HttpServer(
        app, as_any(runner), Settings(**options), prepare=AsyncMock(), announce=started.set, reload=AsyncMock()
    )
    task = asyncio.create_task(http.serve(sockets=[listener]))
    await started.wait()
    try:
        yield http, f"http://127.0.0.1:{port}"
    finally:
        http.should_exit = True
        await task
        listener.close()


async def until_closed(port: int, *parts: bytes) -> bytes:
    """Send the parts, then read to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# offers of another protocol ----------------------------------------------------------------------------------------

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"


def offering(framing: bytes, *, last: bool = False) -> bytes:
    """The head of a chat request as Java's client sends it."""
    offer = OFFER.replace(b"Upgrade,", b"close, Upgrade,") if last else OFFER
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    return head + offer + framing + b"\r\n"


@pytest.mark.parametrize("pieces", ["together", "apart", "chunked", "byte by byte"])
async def test_a_request_that_offers_another_protocol_is_answered_in_its_own(pieces: str) -> None:
    data = orjson.dumps(body("hello"))
    length = b"content-length: %d\r\n" % len(data)
    first, second = offering(length) + data, offering(length, last=True) + data
    match pieces:
        case "apart":
            sent = [offering(length), data, offering(length, last=True), data]
        case "chunked":
            chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
            coded = b"transfer-encoding: chunked\r\n"
            sent = [offering(coded) + chunked, offering(coded, last=True) + chunked]
        case "byte by byte":
            sent = [bytes([byte]) for byte in first + second]
        case _:
            sent = [first + second]
    async with server(ScriptedRunner()) as (_, url):
        received = await until_closed(int(url.rpartition(":")[2]), *sent)
    assert received.count(b"HTTP/1.1 200 OK") == 2, received
    assert received.count(b'"content":"hello"') == 2


# much at once ------------------------------------------------------------------------------------------------------


async def test_requests_that_are_sent_together_are_answered_one_after_another() -> None:
    """More than belongs into one head came at once, and 400 then closed the connection under those before."""
    one = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
    count = 2 * http_protocol.MAX_HEAD_BYTES // len(one)
    async with server(ScriptedRunner()) as (_, url):
        last = one.replace(b"host", b"connection: close\r\nhost")
        received = await until_closed(int(url.rpartition(":")[2]), one * count + last)
    assert received.count(b"HTTP/1.1 200 OK") == count + 1


async def test_a_body_of_many_chunks_is_taken_up_over_many_turns_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, turn, parts = asyncio.get_running_loop(), 0, Counter[int]()
    on_body = BoundedHttpProtocol.on_body

    def counted(self: BoundedHttpProtocol, part: bytes) -> None:
        parts[turn] += 1
        on_body(self, part)

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count_turns)

    monkeypatch.setattr(BoundedHttpProtocol, "on_body", counted)
    data = orjson.dumps(body("a" * 3_000))
    coded = offering(b"transfer-encoding: chunked\r\n", last=True)
    async with server(ScriptedRunner()) as (_, url):
        count_turns()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n"
        received = await until_closed(int(url.rpartition(":")[2]), coded + chunks)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert parts.total() == len(data)
    assert max(parts.values()) < 2 * http_protocol.MOST_PARTS + http_protocol.SLICE // len(b"1\r\n \r\n")


CHUNKED = (
    b"%b HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


async def test_what_comes_after_a_body_is_no_header() -> None:
    """A gateway has not seen it as one, and all of a short request is parsed before any of it is answered."""
    data = orjson.dumps(body("hello"))
    trailers = b"authorization: Bearer a\r\nx-request-id: mine\r\nauthorization: Bearer b\r\n"
    async with server(ScriptedRunner()) as (_, url):
        whole = CHUNKED % b"POST /v1/chat/completions" + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(data), data, trailers)
        received = await until_closed(httpx.URL(url).port or 0, whole)
    assert received.startswith(b"HTTP/1.1 200 OK"), received
    assert b"x-request-id: mine" not in received


@pytest.mark.parametrize("path", [b"POST /v1/chat/completions", b"GET /health"])
@pytest.mark.parametrize("endless", [b"1;" + b"a" * 2000, b"0\r\n" + b"a: b\r\n" * 300, b"0\r\na: " + b"b" * 2000])
async def test_what_has_no_end_around_a_body_ends_the_connection(path: bytes, endless: bytes) -> None:
    """Extensions of a chunk, or headers after the last one: kept, joined anew for each part, and of no limit."""
    async with server(ScriptedRunner()) as (http, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        keep = (CHUNKED % path).replace(b"connection: close\r\n", b"")
        writer.write(keep + endless + endless.removeprefix(b"0\r\n").removeprefix(b"1;") * 200)
        with suppress(ConnectionError):
            await reader.read()
        await until(lambda: not http.server_state.connections, "the end of the connection")
        writer.close()


async def test_more_headers_and_longer_queries_than_anybody_sends_are_refused() -> None:
    headers = [b"a: b\r\n" * count for count in (http_protocol.MAX_HEADERS - 2, http_protocol.MAX_HEADERS)]
    queries = [b"a&" * (count // 2) for count in (http_protocol.MAX_URL_BYTES - 20, http_protocol.MAX_URL_BYTES)]
    head = b"GET /health?%b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n%b\r\n"
    async with server(ScriptedRunner()) as (_, url):
        for requests in ([head % (b"", each) for each in headers], [head % (each, b"") for each in queries]):
            few, many = [await until_closed(httpx.URL(url).port or 0, each) for each in requests]
            assert few.startswith(b"HTTP/1.1 200 OK")
            assert many.startswith(b"HTTP/1.1 400 Bad Request")


async def test_many_who_send_without_end_are_read_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key: what comes after an answer is thrown away as fast as it is read."""
    loop, turn, reads = asyncio.get_running_loop(), 0, Counter[int]()
    received = BoundedHttpProtocol.data_received

    def counted(self: BoundedHttpProtocol, data: bytes) -> None:
        reads[turn] += len(data)
        received(self, data)

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count_turns)

    monkeypatch.setattr(BoundedHttpProtocol, "data_received", counted)
    head, size, clients = b"GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n", 4 * 2**20, 8
    async with server(ScriptedRunner()) as (_, url):
        count_turns()
        sent = head % size + b" " * size + head.replace(b"host", b"connection: close\r\nhost") % 0
        answers = await asyncio.gather(*(until_closed(httpx.URL(url).port or 0, sent) for _ in range(clients)))
    assert [each.count(b"HTTP/1.1 200 OK") for each in answers] == [2] * clients
    assert reads.total() == clients * len(sent)
    assert sum(each > 2 * LARGE_BYTES for each in reads.values()) <= clients


# heads -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def pass_seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the event loop's clock on: no test waits for a limit, and none passes one by itself."""
    loop = asyncio.get_running_loop()
    clock, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: clock() + sum(ahead))
    return ahead.append


PassSeconds = Callable[[float], None]


@pytest.mark.parametrize("sent", [b"", b"GET ", b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: "])
async def test_a_head_that_does_not_come_ends_the_connection(sent: bytes, pass_seconds: PassSeconds) -> None:
    async with server(ScriptedRunner()) as (http, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(sent)
        await until(lambda: http.server_state.connections, "the connection")
        pass_seconds(http_protocol.HEAD_SECONDS)
        assert await reader.read() == b""
        writer.close()


async def test_a_second_head_on_the_same_connection_has_the_same_limit(pass_seconds: PassSeconds) -> None:
    async with server(ScriptedRunner()) as (_, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /health")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            writer.write(b" HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /health")
        await reader.readuntil(b"}")
        pass_seconds(http_protocol.HEAD_SECONDS)
        assert await reader.read() == b""
        writer.close()


async def test_a_body_may_take_longer_than_a_head(pass_seconds: PassSeconds) -> None:
    async with server(ScriptedRunner(), body_stall_seconds=60) as (_, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        pass_seconds(2 * http_protocol.HEAD_SECONDS)
        writer.write(b"{}")
        answer = await reader.readuntil(b"}}")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"param":"model"' in answer
        writer.close()


async def test_a_head_without_end_is_refused() -> None:
    async with server(ScriptedRunner()) as (_, url):
        line = b"x-a: " + b"a" * 1000 + b"\r\n"
        answer = await until_closed(httpx.URL(url).port or 0, b"GET /health HTTP/1.1\r\n", *[line] * 2000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


# connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n", UNFINISHED])
async def test_idle_connections_yield_to_new_ones(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key as many as one likes could be opened: unfinished heads, answered ones, bodies that never end."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 10_000)
    async with server(ScriptedRunner(), max_connections=8) as (http, url):
        idle = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
            writer.write(sent)
            idle.append((reader, writer))
            if sent.endswith(b"\r\n\r\n") or sent == UNFINISHED:
                await reader.readuntil(b"}")
        async with httpx.AsyncClient(timeout=None) as client:
            assert (await client.get(f"{url}/health")).status_code == 200
        for reader, _ in idle[:12]:  # the longest idle ones
            with suppress(ConnectionError):
                await reader.read()  # to its end
        assert len(http.server_state.connections) <= 8
        for _, writer in idle:
            writer.close()


async def test_a_request_at_work_does_not_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 10_000)
    go = asyncio.Event()
    runner = ScriptedRunner(answer=lambda text: Script.saying(text), gate=go)
    async with server(runner, max_connections=2) as (_, url), httpx.AsyncClient(base_url=url, timeout=None) as client:
        answers = [asyncio.create_task(client.post("/v1/chat/completions", json=body("abc"))) for _ in range(2)]
        await runner.accepted(2)
        assert (await until_closed(httpx.URL(url).port or 0)).startswith(b"HTTP/1.1 503 ")
        go.set()
        assert [(await answer).status_code for answer in answers] == [200, 200]
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(("descriptors", "connections"), [(160, 48), (1024, 480), (2**20, 524_256), (10, 1)])
def test_connections_stay_below_the_limit_of_descriptors(descriptors: int, connections: int) -> None:
    assert connections_within(descriptors) == connections


# refused within a body ---------------------------------------------------------------------------------------------


async def test_a_client_that_is_refused_while_it_sends_reads_its_answer() -> None:
    """The socket's buffers are far smaller than what it sends, and it does not read before it has sent it all."""
    async with server(ScriptedRunner(), max_body_bytes=1000) as (_, url):
        port = httpx.URL(url).port or 0
        for connection in (b"close", b"keep-alive"):
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            head += b"connection: " + connection + b"\r\ncontent-length: 8000000\r\n\r\n"
            answer = await until_closed(port, head, *[b"x" * 80_000] * 100)
            assert answer.startswith(b"HTTP/1.1 413"), answer[:80]
            assert answer.endswith(b"}")


async def test_a_client_that_sends_on_after_it_was_refused_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.05)
    async with server(ScriptedRunner(), max_body_bytes=1000) as (_, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 8000000000\r\n\r\n"
        )
        with pytest.raises(ConnectionError):
            await _send_without_end(writer)
        writer.close()
        assert reader.at_eof() or reader.exception() is not None


async def _send_without_end(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 1000)
        await writer.drain()
        await asyncio.sleep(0.001)


async def test_a_client_that_never_reads_the_end_of_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "FLUSH_SECONDS", 0.05)
    runner = ScriptedRunner(answer=lambda _: Script.saying("x" * 4000))
    async with server(runner, stall_seconds=0.2) as (http, url):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", httpx.URL(url).port))
            data = orjson.dumps(body(stream=True, n=4))
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            await loop.sock_sendall(
                client, head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data
            )
            await runner.accepted(4)
            await until(lambda: not http.server_state.connections, "the end of the connection")


# streams -----------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_gets_every_token_and_those_that_waited_for_it_together() -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(3000))
    runner = ScriptedRunner(answer=lambda _: Script.saying(text))
    async with server(runner) as (http, url), httpx.AsyncClient(base_url=url) as client:
        http.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with client.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=4000)) as response:
            await until(lambda: not runner.live, "the end of the answer")
            events = events_of((await response.aread()).decode())
    assert content_of(events) == text
    assert len(events) < len(text)


async def test_answers_on_one_connection_come_one_after_the_other() -> None:
    runner = ScriptedRunner(answer=lambda text: Script.saying(text, pause=0.001))
    parts: list[bytes] = []
    for text, connection in (("first", b"keep-alive"), ("second", b"close")):
        data = orjson.dumps(body(text, stream=True))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        parts.append(head + b"connection: %b\r\ncontent-length: %d\r\n\r\n" % (connection, len(data)) + data)
    async with server(runner) as (_, url):
        answer = await until_closed(httpx.URL(url).port or 0, b"".join(parts))
    said = [orjson.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
    assert content_of(said) == "firstsecond"
    assert [answer.count(each) for each in (b"200 OK", b"[DONE]", b"\r\n0\r\n\r\n")] == [2, 2, 2]


# the end -----------------------------------------------------------------------------------------------------------


async def test_while_it_drains_it_answers_503_and_lets_a_stream_finish() -> None:
    go = asyncio.Event()
    runner = ScriptedRunner(answer=lambda text: Script.saying(text), gate=go)
    async with server(runner, drain_seconds=30) as (http, url), httpx.AsyncClient(base_url=url) as client:
        stream = asyncio.create_task(client.post("/v1/chat/completions", json=body("abc", stream=True)))
        await runner.accepted(1)
        http.should_exit = True
        while (await client.get("/ready")).status_code == 200:  # noqa: ASYNC110  only asking tells
            await asyncio.sleep(0.01)
        refused = await client.post("/v1/chat/completions", json=body())
        assert error_of(refused, 503)["code"] == "not_ready"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        go.set()
        assert events_of((await stream).text)[-1]["choices"][0]["finish_reason"] == "stop"
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)


async def test_what_still_runs_when_the_drain_ends_gets_its_error_event() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("a", finish=None))
    async with server(runner, drain_seconds=0.05) as (http, url), httpx.AsyncClient(base_url=url) as client:
        stream = asyncio.create_task(client.post("/v1/chat/completions", json=body("abc", stream=True)))
        whole = asyncio.create_task(client.post("/v1/chat/completions", json=body("abc")))
        await runner.accepted(2)
        http.should_exit = True
        assert events_of((await stream).text)[-1]["error"]["code"] == "shutting_down"
        assert error_of(await whole, 503)["code"] == "shutting_down"


# plain ways --------------------------------------------------------------------------------------------------------


async def test_streams_are_served_by_a_server_that_does_not_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_NOW", "an.extension.that.nobody.reads")
    runner = ScriptedRunner(answer=lambda text: Script.saying(text, pause=0.001))
    async with server(runner) as (_, url), httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/chat/completions", json=body("said in parts", stream=True))
    assert content_of(events_of(response.text)) == "said in parts"


def test_without_uvloop_the_loop_is_asyncio_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delitem(sys.modules, "uvicorn.loops.auto", raising=False)
    monkeypatch.delitem(sys.modules, "uvicorn.loops.uvloop", raising=False)
    runner = ScriptedRunner()
    http = HttpServer(
        application(runner), as_any(runner), Settings(), prepare=AsyncMock(), announce=lambda: None, reload=AsyncMock()
    )
    factory = http.config.get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as loops:
        assert type(loops.get_loop()).__module__.startswith("asyncio.")
