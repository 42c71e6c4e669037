"""A closed-loop load: each client sends its next streaming request when the last one has ended."""

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import httpx


@dataclass(frozen=True)
class Load:
    """What the clients saw. Seconds; `tokens` are completion tokens as the server counted them."""

    requests: int
    tokens: int
    seconds: float
    first_token: Sequence[float]
    between_tokens: Sequence[float]

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens of all clients over the wall time."""
        return self.tokens / self.seconds

    @property
    def first_token_p50(self) -> float:
        """Median seconds from sending a request to its first content."""
        return median(self.first_token)

    @property
    def between_tokens_p50(self) -> float:
        """Median seconds between two pieces of content."""
        return median(self.between_tokens)


async def _client(
    http: httpx.AsyncClient, bodies: Iterator[dict[str, Any]], load: list[tuple[int, list[float]]]
) -> None:
    for body in bodies:
        marks = [perf_counter()]
        tokens = 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    marks.append(perf_counter())
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        load.append((tokens, marks))


async def _run(url: str, bodies: Sequence[dict[str, Any]], clients: int, requests: int) -> Load:
    work = itertools.islice(itertools.cycle(bodies), requests)
    done: list[tuple[int, list[float]]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as http:
        started = perf_counter()
        await asyncio.gather(*(_client(http, work, done) for _ in range(clients)))
        seconds = perf_counter() - started
    return Load(
        requests=len(done),
        tokens=sum(tokens for tokens, _ in done),
        seconds=seconds,
        first_token=[marks[1] - marks[0] for _, marks in done if len(marks) > 1],
        between_tokens=[b - a for _, marks in done for a, b in itertools.pairwise(marks[1:])],
    )


def run_load(url: str, bodies: Sequence[dict[str, Any]], *, clients: int, requests: int) -> Load:
    """Send `requests` streaming requests, `clients` at a time, cycling through `bodies`."""
    asyncio.run(_run(url, bodies, clients, min(clients, requests)))  # warm-up
    return asyncio.run(_run(url, bodies, clients, requests))
