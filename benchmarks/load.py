"""Loads: closed, where each client sends its next request when the last has ended; open, where they come by chance."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, TypeVar

import uvloop

from benchmarks.client import Answer, Connection
from benchmarks.estimate import percentile

LIMIT_SECONDS = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """What the clients saw. Seconds; `busy` is what the load generator itself took of a core."""

    answers: Sequence[Answer]
    seconds: float
    busy: float

    @property
    def tokens(self) -> int:
        """Completion tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens of all clients over the wall time."""
        return self.tokens / self.seconds

    @property
    def first_token(self) -> list[float]:
        """From each request to its first piece of content."""
        return [answer.first_token for answer in self.answers]

    @property
    def between_tokens(self) -> list[float]:
        """Between two pieces of one answer's content."""
        return [after - before for answer in self.answers for before, after in itertools.pairwise(answer.marks)]

    @property
    def first_token_p50(self) -> float:
        """Median time to the first token."""
        return percentile(self.first_token, 50)

    @property
    def between_tokens_p50(self) -> float:
        """Median time between tokens."""
        return percentile(self.between_tokens, 50)


def run(work: Coroutine[Any, Any, T], limit: float = LIMIT_SECONDS) -> T:
    """Run on the fastest loop there is, for at most so long. Raises TimeoutError, AnswerError."""

    async def bounded() -> T:
        try:
            async with asyncio.timeout(limit):
                return await work
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without a collection of garbage, which would show as a pause of the server."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _closed(url: str, requests: Iterator[bytes], clients: int) -> Load:
    answers: list[Answer] = []

    async def client(connection: Connection) -> None:
        for request in requests:
            if connection.closed:
                connection = await Connection.open(url)
            answers.append(await connection.ask(request))
        connection.close()

    connections = [await Connection.open(url) for _ in range(clients)]
    with undisturbed():
        busy, began = process_time(), perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(client(connection))
        return Load(answers, perf_counter() - began, process_time() - busy)


async def _open(url: str, requests: Iterator[bytes], arrivals: Sequence[float]) -> Load:
    answers: list[Answer] = []
    idle: list[Connection] = []

    async def client(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(url)
        answers.append(await connection.ask(request, due))
        if not connection.closed:
            idle.append(connection)

    with undisturbed():
        busy, began = process_time(), perf_counter()
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                await asyncio.sleep(began + arrival - perf_counter())
                # The loop's clock ticks in milliseconds: it may wake too early, which is then when the request came.
                group.create_task(client(next(requests), min(began + arrival, perf_counter())))
        load = Load(answers, perf_counter() - began, process_time() - busy)
    for connection in idle:
        connection.close()
    return load


def closed_load(url: str, requests: Sequence[bytes], *, clients: int, count: int) -> Load:
    """Send `count` requests, `clients` at a time, cycling through `requests`."""
    return run(_closed(url, itertools.islice(itertools.cycle(requests), count), clients))


def open_load(url: str, requests: Sequence[bytes], *, rate: float, count: int, seed: int = 0) -> Load:
    """Send `count` requests that arrive at random, `rate` a second, each timed from when it should have been sent."""
    chance = random.Random(seed)
    arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in range(count)))
    return run(_open(url, itertools.cycle(requests), arrivals), LIMIT_SECONDS + arrivals[-1])
