"""`python -m benchmarks.canned`: a server that has its answer ready, for the load generator's own ceiling.

Each event is a chunk and a write of its own, the connections in turn, as an engine's steps would send them.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, cast

import httptools
import typer
import uvloop

from tests.end_to_end.processes import end

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def sse(data: object) -> bytes:
    """One event of a stream."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":")).encode()) + b"\n\n"


def chunk(body: bytes) -> bytes:
    """One chunk of a response's body."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def events(tokens: int) -> list[bytes]:
    """The events of an answer like the server's own: a role, so many pieces of one token, an end, the usage."""

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice], "usage": None})

    head = {
        "id": "chatcmpl-" + "0" * 32,
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": "canned",
        "system_fingerprint": "fp_0123456789",
    }
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    return [
        event({"role": "assistant", "content": ""}),
        *(event({"content": f" {number}"}) for number in range(tokens)),
        event({}, "length"),
        sse({**head, "choices": [], "usage": usage}),
        sse(b"[DONE]"),
    ]


class Canned(asyncio.Protocol):
    """Answers every request with the same parts, one write each."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._left: Iterator[bytes] = iter(())
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """All of a request."""
        self._left = iter(self._parts)
        self._send()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._send()

    def _send(self) -> None:
        if self._paused or self._transport.is_closing():
            return
        part = next(self._left, None)
        if part is not None:
            self._transport.write(part)
            self._loop.call_soon(self._send)


def parts(tokens: int) -> list[bytes]:
    """A whole response, cut where it is written."""
    return [HEAD, *map(chunk, events(tokens)), LAST]


async def serve(tokens: int) -> None:
    """Serve on a free port, which is printed."""
    cut = parts(tokens)
    server = await asyncio.get_running_loop().create_server(lambda: Canned(cut), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def canned_server(tokens: int) -> Iterator[str]:
    """A canned server in a process of its own; its URL."""
    arguments = [sys.executable, "-m", "benchmarks.canned", "--tokens", str(tokens)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = re.fullmatch(rb"(\d+)\n", process.stdout.readline())
        assert port is not None, "the canned server did not start"
        yield f"http://127.0.0.1:{int(port[1])}"
    finally:
        end(process)


def main(tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 64) -> None:
    """Answer every request with the same stream, as fast as it goes."""
    uvloop.run(serve(tokens))


if __name__ == "__main__":
    typer.run(main)
