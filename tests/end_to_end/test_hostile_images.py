"""Images that are small to send and large to decode, against a real server: others are served beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.attacks.images import chat_of, one_colour
from server.access.keys import hash_key, new_key
from server.settings.schema import Settings
from server.settings.units import MEBI
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess
from tests.waiting import until

REQUESTS = 6
SIZE = (3000, 2000)  # a quarter of what the default limits let through
LIMITS = Settings(max_image_pixels=6_000_000, max_request_pixels=12_000_000)
MARGIN = 64 * MEBI  # what else 6 requests take
HELLO = {"role": "user", "content": "Hello."}

pytestmark = pytest.mark.chance


@dataclass(frozen=True)
class Pair:
    """A server, and two keys of it."""

    server: ServerProcess
    attacker: str
    honest: str

    async def ask(self, key: str, body: dict[str, Any]) -> int:
        """The status of one chat."""
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.server.url, headers=headers, timeout=600) as client:
            return (await client.post("/v1/chat/completions", json=body)).status_code

    def attack(self, first: int) -> list[asyncio.Task[int]]:
        """Requests of as many pixels as one may have; none of their images was seen before."""
        return [
            asyncio.create_task(self.ask(self.attacker, chat_of(self.server.model, two_large(number))))
            for number in range(first, first + REQUESTS)
        ]


def two_large(number: int) -> list[str]:
    """Two images, as large as they may be; of each number others, since what is known by its file is not decoded."""
    return [one_colour(SIZE, f"#{number:02x}{place:02x}ff") for place in range(2)]


@pytest.fixture(name="pair", scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    attacker, honest = new_key(), new_key()
    settings = {
        "keys": [{"name": name, "hash": hash_key(key)} for name, key in (("one", attacker), ("other", honest))],
        "prepare_threads": 1,
        "max_image_pixels": LIMITS.max_image_pixels,
        "max_request_pixels": LIMITS.max_request_pixels,
    }
    file = tmp_path_factory.mktemp("images") / "autosteer.yaml"
    file.write_text(yaml.safe_dump(settings))
    with ForkedServer(["--config", str(file)], key=honest) as server:
        yield Pair(server, attacker, honest)


async def test_images_of_too_many_pixels_are_refused_before_any_is_decoded(pair: Pair) -> None:
    sixteen = chat_of(pair.server.model, [one_colour(SIZE)] * 16)
    assert await asyncio.gather(*(pair.ask(pair.attacker, sixteen) for _ in range(2))) == [400, 400]


async def test_texts_of_others_do_not_wait_for_images_whose_memory_is_bounded_and_comes_back(pair: Pair) -> None:
    """Were they to take turns with them, there would be as many answers as requests with images."""
    server = pair.server
    await pair.ask(pair.attacker, chat_of(server.model, two_large(99)))  # what is started when it is first needed
    before = peak = server.rss_bytes
    attack = asyncio.gather(*pair.attack(0))
    answers = 0
    while not attack.done():
        if answers <= 2 * REQUESTS:
            assert await pair.ask(pair.honest, {"model": server.model, "max_tokens": 1, "messages": [HELLO]}) == 200
            answers += not attack.done()
        else:  # what more would be asked takes the cores from the images
            await asyncio.wait([attack], timeout=0.05)
        peak = max(peak, server.rss_bytes)
    assert set(await attack) == {200}
    assert answers > 2 * REQUESTS
    assert peak - before < LIMITS.decode_memory_bytes + MARGIN
    await until(lambda: server.rss_bytes < before + MARGIN, "memory to come back")


async def test_an_image_of_another_key_waits_for_few_of_the_attackers(pair: Pair) -> None:
    attack = pair.attack(REQUESTS)
    await asyncio.wait(attack, return_when=asyncio.FIRST_COMPLETED)
    small = chat_of(pair.server.model, [one_colour((9, 9))])
    assert await pair.ask(pair.honest, small) == 200
    done = sum(each.done() for each in attack)
    assert set(await asyncio.gather(*attack)) == {200}
    assert done <= 3, "the first, the one that was at work, and one that may have ended with its answer"
