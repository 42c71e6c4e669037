"""Loads: closed, where each client sends its next request when the last has ended; open, where they come by chance."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, TypeVar

import uvloop

from benchmarks.client import Answer, AnswerError, Connection
from benchmarks.estimate import percentile

LIMIT_SECONDS = 300.0
PATIENCE_SECONDS = 20.0  # with what has not been answered when an open load has sent its last request
PROMPT_SECONDS = 1.0  # a good answer begins within these
STALL_SECONDS = 0.3  # and never stops for as long

T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """What the clients saw. Seconds; `busy` is what the load generator itself took of a core.

    `asking`: from the first request until no more were sent. `lost`: why each request without an answer had none.
    """

    answers: Sequence[Answer]
    seconds: float
    busy: float
    asking: float
    lost: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        """Completion tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens of all clients over the wall time."""
        return self.tokens / self.seconds

    @property
    def goodput(self) -> float:
        """Requests per second whose answers a reader never had to wait for: soon begun, and never stalled."""
        return sum(map(is_good, self.answers)) / self.asking

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


def is_good(answer: Answer) -> bool:
    """Whether its first token came within a second, and every other within 300 ms of the one before."""
    stalls = any(after - before >= STALL_SECONDS for before, after in itertools.pairwise(answer.marks))
    return answer.first_token <= PROMPT_SECONDS and not stalls


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


async def _closed(url: str, requests: Iterator[bytes], clients: int, seconds: float) -> Load:
    answers: list[Answer] = []

    async def client(connection: Connection, until: float) -> None:
        for request in requests:
            if connection.closed:
                connection = await Connection.open(url)
            answers.append(await connection.ask(request))
            if perf_counter() >= until:
                break
        connection.close()

    connections = [await Connection.open(url) for _ in range(clients)]
    with undisturbed():
        busy, began = process_time(), perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(client(connection, began + seconds))
        seconds = perf_counter() - began
        return Load(answers, seconds, process_time() - busy, asking=seconds)


@dataclass
class _Open:
    """Requests under way over as many connections as they need, and what became of them."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    idle: list[Connection] = field(default_factory=list)

    async def ask(self, request: bytes, due: float) -> None:
        """Send one, and keep its answer, or why there is none."""
        try:
            connection = await self._connection()
            self.answers.append(await connection.ask(request, due))
        except (AnswerError, OSError) as error:
            self.lost.append(str(error))
        else:
            self.idle.append(connection)

    async def _connection(self) -> Connection:
        while self.idle:
            if not (connection := self.idle.pop()).closed:
                return connection
        return await Connection.open(self.url)


async def _open(url: str, requests: Iterator[bytes], arrivals: Sequence[float], patience: float) -> Load:
    load, under_way = _Open(url), []
    with undisturbed():
        busy, began = process_time(), perf_counter()
        for arrival in arrivals:
            await asyncio.sleep(began + arrival - perf_counter())
            # The loop's clock ticks in milliseconds: it may wake too early, which is then when the request came.
            due = min(began + arrival, perf_counter())
            under_way.append(asyncio.create_task(load.ask(next(requests), due)))
        ended, late = await asyncio.wait(under_way, timeout=patience)
        seconds, busy = perf_counter() - began, process_time() - busy
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in ended:
        task.result()
    for connection in load.idle:
        connection.close()
    lost = [*load.lost, *[f"no answer {patience:g} s after the last request"] * len(late)]
    return Load(load.answers, seconds, busy, asking=arrivals[-1], lost=lost)


def closed_load(
    url: str, requests: Sequence[bytes], *, clients: int, count: int, seconds: float = LIMIT_SECONDS
) -> Load:
    """Send `count` requests, `clients` at a time, cycling through `requests`; after so many seconds no more of them."""
    return run(_closed(url, itertools.islice(itertools.cycle(requests), count), clients, seconds))


def open_load(
    url: str,
    requests: Sequence[bytes],
    *,
    rate: float,
    count: int,
    seed: int = 0,
    patience: float = PATIENCE_SECONDS,
) -> Load:
    """Send `count` requests that arrive at random, `rate` a second, each timed from when it should have been sent.

    What has no answer so many seconds after the last of them is lost, as is what the server refuses.
    """
    chance = random.Random(seed)
    arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in range(count)))
    work = _open(url, itertools.cycle(requests), arrivals, patience)
    return run(work, LIMIT_SECONDS + arrivals[-1] + patience)
