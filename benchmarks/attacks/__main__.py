"""`python -m benchmarks.attacks`: what large images and withheld bodies of one key cost those who chat with another.

One server of the bundled model with its default settings for each attack. The honest client asks for a short text
answer, again and again; memory is resident, of the server and all its processes: what they share counts for each.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.attacks.bodies import withheld_bodies
from benchmarks.attacks.images import large_images
from server.access.keys import hash_key, new_key
from server.settings.units import MEBI
from tests.end_to_end.processes import ServerProcess

PLACES = 272  # max_rows and max_queue by default
HELD_SECONDS = 8.0  # that withheld bodies are looked at
WARM_ANSWERS = 10
AFTER_SECONDS = 10.0  # in which memory may come back


@dataclass
class Watch:
    """What the honest client saw, and the server's memory."""

    waits: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    before: int = 0
    peak: int = 0
    after: int = 0


@dataclass(frozen=True)
class Target:
    """A server with two keys."""

    server: ServerProcess
    attacker: str
    honest: str


Attack = Callable[[Target], Awaitable[str]]


async def images(target: Target) -> str:
    """Two requests of 16 one-colour images of 24 megapixels."""
    return f"answered {await large_images(target.server.url, target.server.model, target.attacker)}"


async def slow_bodies(target: Target) -> str:
    """One byte of a body on as many sockets as there are places."""
    return await _withheld(target, sockets=PLACES, announced=100, sent=1)


async def large_bodies(target: Target) -> str:
    """40 bodies of 31 MiB that lack their last byte."""
    return await _withheld(target, sockets=40, announced=31 * MEBI, sent=31 * MEBI - 1)


async def _withheld(target: Target, *, sockets: int, announced: int, sent: int) -> str:
    bodies = await withheld_bodies(target.server.url, target.attacker, sockets=sockets, announced=announced, sent=sent)
    await asyncio.sleep(HELD_SECONDS)
    answers = dict(bodies.answers)
    await bodies.close()
    return f"answered {answers}"


ATTACKS: dict[str, Attack] = {
    "2 requests of 16 one-colour WebP of 24 megapixels": images,
    "272 bodies of which one byte comes": slow_bodies,
    "40 bodies of 31 MiB without their last byte": large_bodies,
}


@contextmanager
def target() -> Iterator[Target]:
    """A server of the bundled model with its defaults, and two keys."""
    attacker, honest = new_key(), new_key()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "autosteer.yaml"
        keys = [{"name": name, "hash": hash_key(key)} for name, key in (("attacker", attacker), ("honest", honest))]
        file.write_text(yaml.safe_dump({"keys": keys}))
        with ServerProcess(["--config", str(file)], key=honest) as server:
            yield Target(server, attacker, honest)


async def honest_chat(target: Target, watch: Watch, client: httpx.AsyncClient) -> None:
    """One short answer."""
    body = {"model": target.server.model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello."}]}
    begun = time.perf_counter()
    answer = await client.post("/v1/chat/completions", json=body)
    watch.waits.append(time.perf_counter() - begun)
    watch.statuses[answer.status_code] += 1


async def watched(target: Target, attack: Attack) -> tuple[Watch, str]:
    """An attack, with an honest client beside it."""
    watch = Watch()
    headers = {"authorization": f"Bearer {target.honest}"}
    async with httpx.AsyncClient(base_url=target.server.url, headers=headers, timeout=600) as client:
        for _ in range(WARM_ANSWERS):
            await honest_chat(target, watch, client)
        watch.waits.clear()
        watch.statuses.clear()
        watch.before = watch.peak = target.server.rss_bytes

        async def chat() -> None:
            while True:
                await honest_chat(target, watch, client)
                await asyncio.sleep(0.02)

        async def weigh() -> None:
            while True:
                watch.peak = max(watch.peak, target.server.rss_bytes)
                await asyncio.sleep(0.05)

        beside = [asyncio.create_task(each) for each in (chat(), weigh())]
        told = await attack(target)
        await honest_chat(target, watch, client)  # one that waits is counted too
        for each in beside:
            each.cancel()
        await asyncio.sleep(AFTER_SECONDS)
        watch.after = target.server.rss_bytes
    return watch, told


def main() -> None:
    """Print a line for each attack."""
    table = Table("attack", "answers to it", "answers to others", "longest wait, s", "MiB before", "peak", "after")
    for name, attack in ATTACKS.items():
        with target() as found:
            watch, told = asyncio.run(watched(found, attack))
        sizes = (f"{size / MEBI:.0f}" for size in (watch.before, watch.peak, watch.after))
        table.add_row(name, told, str(dict(watch.statuses)), f"{max(watch.waits):.2f}", *sizes)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
