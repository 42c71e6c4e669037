"""One key's bodies that do not come, or are large, against a real server: another key is served beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.attacks.bodies import WithheldBodies, withheld_bodies
from server.access.keys import hash_key, new_key
from server.settings.units import MEBI
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess

PLACES = 4
SOCKETS = 16

pytestmark = pytest.mark.chance


@dataclass(frozen=True)
class Pair:
    """A server, and two keys of it."""

    server: ServerProcess
    attacker: str
    honest: str

    async def chat(self) -> int:
        """The status of the honest key's chat."""
        body = {"model": self.server.model, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello."}]}
        headers = {"authorization": f"Bearer {self.honest}"}
        async with httpx.AsyncClient(base_url=self.server.url, headers=headers, timeout=60) as client:
            return (await client.post("/v1/chat/completions", json=body)).status_code


@pytest.fixture(name="pair", scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    attacker, honest = new_key(), new_key()
    settings = {
        "keys": [{"name": name, "hash": hash_key(key)} for name, key in (("one", attacker), ("other", honest))],
        "max_rows": 2,
        "max_queue": PLACES - 2,
        "max_body_bytes": 2 * MEBI,
        "body_memory_mib": 8,
        "body_stall_seconds": 5,
        "body_rate": 10 * MEBI,
    }
    file = tmp_path_factory.mktemp("hoarders") / "autosteer.yaml"
    Path(file).write_text(yaml.safe_dump(settings))
    with ForkedServer(["--config", str(file)], key=honest) as server:
        yield Pair(server, attacker, honest)


async def answered(bodies: WithheldBodies, count: int) -> None:
    async with asyncio.timeout(60):
        await bodies.answered(count)


async def test_bodies_that_never_come_hold_no_places_and_are_given_up(pair: Pair) -> None:
    bodies = await withheld_bodies(pair.server.url, pair.attacker, sockets=SOCKETS, announced=100, sent=1)
    assert SOCKETS > PLACES
    assert await pair.chat() == 200
    await answered(bodies, SOCKETS)
    assert bodies.answers == {400: SOCKETS}
    await bodies.close()


async def test_large_bodies_of_one_key_take_at_most_half_of_the_memory_for_them(pair: Pair) -> None:
    sent = 2 * MEBI - 1
    bodies = await withheld_bodies(pair.server.url, pair.attacker, sockets=SOCKETS, announced=sent + 1, sent=sent)
    await answered(bodies, SOCKETS - 2)  # two have come but for a byte, the half of 8 MiB; others would pass it
    assert bodies.answers[503] >= SOCKETS - 2
    assert await pair.chat() == 200
    await bodies.close()
