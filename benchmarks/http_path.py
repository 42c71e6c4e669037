"""What HTTP costs: CPU time of the server's process for each streamed token, and for each request. No model.

The real application and server over an engine that says one token per live request and step; the clients are in a
process of their own. Processor time, since the machine may have other work.

Run: python -m benchmarks.http_path
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import sys
from bisect import bisect
from itertools import cycle
from statistics import median
from time import monotonic, process_time
from typing import Annotated, Any
from unittest.mock import AsyncMock

import orjson
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from models.demo import CHECKPOINT
from server.cli.main import listen
from server.engine.host import Inputs
from server.engine.live import Deliver
from server.engine.wire import Parcel
from server.http.server import HttpServer
from server.request import Event, Finish, Request
from server.settings.schema import Settings
from steering.policy import Decision, Verdict
from tests.server.fakes import as_any
from tests.server.scripted import ScriptedRunner, application, body

TEXT = "There are three red apples and a blue ball on the table, and the cat beside them sleeps: it's late. "
ITERATIONS = 3  # of the event loop, from a step to the next, so that no stream has two tokens at once
STREAMS = {1: 3000, 16: 300, 64: 100}  # and the tokens of each
REQUESTS = 500  # one after the other, of one token each
ROUNDS = 10


class SteadyRunner(ScriptedRunner):
    """Says the next token of a text to every live request, step after step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(CHECKPOINT))
        assert self.model is not None
        self.model = self.model[0], Inputs(as_any(self.inputs), tokenizer)
        self.streams = 1  # that must be there before a token is said
        self.said_at: list[float] = []  # monotonic seconds
        self._text = cycle(tokenizer(TEXT)["input_ids"])
        self._speaking: dict[str, tuple[Request, Deliver]] = {}
        self._stepping = False

    @property
    def live(self) -> int:
        """Requests that are not at their end."""
        return len(self._speaking)

    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        """Take requests, and begin once all streams are there."""
        for request in parcel.requests:
            request.timings.scheduled = monotonic()
            request.decision = Decision(Verdict.PASS, 0.25, 0.0)
            self._speaking[request.id] = request, deliver
        if not self._stepping and self.live >= self.streams:
            self._stepping = True
            asyncio.get_running_loop().call_soon(self._step)

    def abort(self, request_id: str) -> None:
        """Forget a request."""
        self._speaking.pop(request_id, None)

    def _step(self) -> None:
        token = next(self._text)
        self.said_at.append(monotonic())
        for request, deliver in list(self._speaking.values()):
            request.output_ids.append(token)
            finish = Finish.LENGTH if len(request.output_ids) == request.max_tokens else None
            if finish is not None:
                del self._speaking[request.id]
            deliver([Event(request, token=token, finish=finish)])
        self._stepping = bool(self._speaking)
        if self._stepping:
            self._wait(ITERATIONS if len(self.said_at) > 1 else 10 * ITERATIONS)  # the first token opens the streams

    def _wait(self, iterations: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(*((self._wait, iterations - 1) if iterations else (self._step,)))


async def measure(runner: SteadyRunner, port: int, streams: int, tokens: int, requests: int) -> tuple[float, float]:
    """CPU seconds of so many requests on each stream; and the median seconds from a step's begin to a read."""
    runner.streams, runner.said_at = streams, []
    data = orjson.dumps(body(stream=True, max_tokens=tokens))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    readers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.readers", *map(str, (port, streams, tokens, requests))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    before = process_time()
    read_at, _ = await readers.communicate(head + b"content-length: %d\r\n\r\n" % len(data) + data)
    spent = process_time() - before
    assert readers.returncode == 0
    latencies = [read - runner.said_at[bisect(runner.said_at, read) - 1] for read in orjson.loads(read_at)]
    return spent, median(latencies)


async def best(runner: SteadyRunner, port: int, streams: int, tokens: int, requests: int) -> tuple[float, float]:
    """The least of the rounds: other work on the machine only ever adds."""
    rounds = [await measure(runner, port, streams, tokens, requests) for _ in range(ROUNDS)]
    spent, latencies = zip(*rounds, strict=True)
    return min(spent), min(latencies)


async def figures(runner: SteadyRunner, port: int) -> Table:
    """CPU time of a request and of a token."""
    await measure(runner, port, 1, 1, 50)  # what is done once
    request = (await best(runner, port, 1, 1, REQUESTS))[0] / REQUESTS
    table = Table("", "CPU µs", "event to read, µs")
    table.add_row("a request of one token", f"{request * 1e6:.0f}", "")
    for streams, tokens in STREAMS.items():
        spent, latency = await best(runner, port, streams, tokens, 1)
        each = (spent - streams * request) / (streams * (tokens - 1))
        table.add_row(f"a further token, {streams} streams", f"{each * 1e6:.1f}", f"{latency * 1e6:.0f}")
    return table


async def run(profiler: cProfile.Profile | None) -> None:
    """Serve, measure and print."""
    runner = SteadyRunner()
    listener = listen("127.0.0.1", 0)
    started = asyncio.Event()
    http = HttpServer(
        application(runner), as_any(runner), Settings(), prepare=AsyncMock(), announce=started.set, reload=AsyncMock()
    )
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    await started.wait()
    port = listener.getsockname()[1]
    if profiler is None:
        Console().print(await figures(runner, port))
    else:
        for streams, tokens, requests in ((1, 1, REQUESTS), (16, STREAMS[16], 1)):
            await measure(runner, port, 1, 1, 50)
            with profiler:
                await measure(runner, port, streams, tokens, requests)
            print(f"{streams} streams of {tokens} tokens, {requests} times")
            pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
            profiler.clear()
    http.should_exit = True
    await serving


def main(
    profile: Annotated[bool, typer.Option(help="Print where the time goes instead.")] = False,
) -> None:
    """Print CPU time per token and per request."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(run(cProfile.Profile() if profile else None))


if __name__ == "__main__":
    typer.run(main)
