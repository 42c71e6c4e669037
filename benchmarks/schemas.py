"""`python -m benchmarks.schemas`: 1,000 random and 60 hostile JSON schemas, and how long others wait meanwhile.

Attackers ask for answers bound to the schemas, a few at a time, while witnesses ask for what anybody asks for, one
request after another. What a witness waits is printed beside what it waits where the attackers ask without schemas.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.attacks.schemas import Schema, hostile_schemas, random_schema
from benchmarks.estimate import percentile
from benchmarks.siege.observer import watched
from tests.end_to_end.processes import ServerProcess

SMALL: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
CHAT = "/v1/chat/completions"


@dataclass
class Witness:
    """Somebody who asks for what everybody asks for, again and again."""

    name: str
    path: str
    body: Callable[[int], dict[str, Any]]
    waits: list[float] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    async def ask(self, client: httpx.AsyncClient, url: str) -> None:
        """Ask without a pause until it is cancelled. Raises HTTPStatusError for any answer but a good one."""
        while True:
            began = perf_counter()
            answer = await client.post(url + self.path, json=self.body(next(self.numbers)))
            self.waits.append(perf_counter() - began)
            answer.raise_for_status()
            await asyncio.sleep(0.01)


def chat(model: str, schema: Schema | None = None) -> dict[str, Any]:
    """A short answer, bound to a schema if there is one."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {
        "model": model,
        "messages": [{"role": "user", "content": "What is green?"}],
        "max_tokens": 2,
        **({} if schema is None else {"response_format": wanted}),
    }


def witnesses(model: str) -> list[Witness]:
    """Those who have nothing to do with schemas, and those with harmless ones; `/health` is asked beside them."""
    return [
        Witness("/tokenize", "/tokenize", lambda _: {"prompt": "What is green?"}),
        Witness("chat", CHAT, lambda _: chat(model)),
        Witness("chat, a schema known before", CHAT, lambda _: chat(model, SMALL)),
        Witness("chat, a new small schema each time", CHAT, lambda n: chat(model, {**SMALL, "title": f"witness {n}"})),
    ]


class Siege:
    """One server, its witnesses, and what is measured."""

    def __init__(self, server: ServerProcess, attackers: int) -> None:
        self._server = server
        self._attackers = attackers
        self.outcomes: Counter[str] = Counter()
        self.peak = 0

    async def attacked(self, schemas: Sequence[Schema | None]) -> list[Witness]:
        """Witnesses beside the attackers."""
        found = witnesses(self._server.model)
        async with httpx.AsyncClient(timeout=300) as client:
            tasks = [asyncio.create_task(each.ask(client, self._server.url)) for each in found]
            tasks.append(asyncio.create_task(self._memory()))
            await self._attack(schemas)
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
        return found

    async def _memory(self) -> None:
        while True:
            self.peak = max(self.peak, self._server.rss_bytes)
            await asyncio.sleep(0.5)

    async def _attack(self, schemas: Sequence[Schema | None]) -> None:
        left = iter(schemas)
        async with httpx.AsyncClient(timeout=300) as client:

            async def attack() -> None:
                for schema in left:
                    body = chat(self._server.model, schema)
                    answer = await client.post(self._server.url + CHAT, json=body)
                    self.outcomes[str(answer.status_code)] += 1

            await asyncio.gather(*(attack() for _ in range(self._attackers)))


def table_of(quiet: list[Witness], attacked: list[Witness]) -> Table:
    """What each witness waited, in milliseconds."""
    columns = [f"{share} {kind}" for kind in ("without", "with schemas") for share in ("p50", "p99", "longest")]
    table = Table("witness, ms", "requests", *columns)
    for before, beside in zip(quiet, attacked, strict=True):
        figures = [percentile(each.waits, share) for each in (before, beside) for share in (50.0, 99.0, 100.0)]
        table.add_row(beside.name, str(len(beside.waits)), *(f"{1e3 * each:.0f}" for each in figures))
    return table


def main(
    randoms: Annotated[int, typer.Option(help="Random schemas.")] = 1000,
    without: Annotated[int, typer.Option(help="Requests of attackers without a schema, before.")] = 500,
    attackers: Annotated[int, typer.Option(help="Schemas asked for at the same time.")] = 4,
    seed: int = 0,
) -> None:
    """Print what the witnesses waited, what became of the schemas, and the memory."""
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(randoms)] + hostile_schemas()
    rng.shuffle(schemas)
    console = Console(width=150)
    with ServerProcess([]) as server:

        async def run() -> None:
            siege = Siege(server, attackers)
            await siege.attacked(schemas[:20])  # what is started when it is first needed
            with watched("127.0.0.1", server.port, server.process.pid) as alone:
                quiet = await siege.attacked([None] * without)
            before, siege.peak = server.rss_bytes, 0
            siege.outcomes.clear()
            began = perf_counter()
            with watched("127.0.0.1", server.port, server.process.pid) as beside:
                attacked = await siege.attacked(schemas)
            took = perf_counter() - began
            console.print(table_of(quiet, attacked))
            for name, found in (("without schemas", alone), ("with schemas", beside)):
                waits = [1e3 * percentile(each, share) for each in (found.waits, found.own) for share in (99.9, 100.0)]
                console.print(
                    "/health {}, ms: p99.9 {:.0f}, longest {:.0f}; of it the server's own computing "
                    "{:.0f}, {:.0f}".format(name, *waits)
                )
            console.print(f"{len(schemas)} schemas in {took:.0f} s: {dict(siege.outcomes)}")
            megabytes = [each / 1e6 for each in (before, siege.peak, server.rss_bytes)]
            console.print(
                "memory of the server and its processes, MB: {:.0f} before, {:.0f} at most, {:.0f} after".format(
                    *megabytes
                )
            )

        asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
