"""Those who chat and those who attack, for so long, on one server."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.client import Answer, AnswerError, Connection, request_bytes
from benchmarks.load import undisturbed
from benchmarks.siege.attacks import ATTACKS, Target
from benchmarks.siege.observer import Lateness, Stops, heard, watched
from models.demo.dialogue import utility
from server.access.keys import hash_key, new_key
from tests.end_to_end.processes import ServerProcess, user

POLICIES: Mapping[str, Mapping[str, object]] = {
    "watched": {"mode": "monitor"},
    "limited": {"requests_per_minute": 60},
    "chat": {},
}
WORDS = "Describe a red cube."


@dataclass(frozen=True)
class Site:
    """A server's config file, with a key for each policy, and an audit log that keeps what was asked."""

    folder: Path
    keys: Mapping[str, str] = field(
        default_factory=lambda: {name: new_key() for name in ("default", *POLICIES, "console")}
    )

    def __post_init__(self) -> None:
        keys: list[Mapping[str, str]] = [
            {"name": name, "hash": hash_key(key)} | ({"scope": name} if name == "console" else {"policy": name})
            for name, key in self.keys.items()
        ]
        audit = {"url": f"file://{self.folder.absolute() / 'audit.jsonl'}", "content": True}
        # Answers are made to go on past their end, where the guard would end some.
        settings = {"policies": dict(POLICIES), "output": {"mode": "off"}, "keys": keys, "audit": audit}
        self.config.write_text(yaml.safe_dump(settings))

    @property
    def config(self) -> Path:
        """For `--config`."""
        return self.folder / "autosteer.yaml"

    @property
    def beats(self) -> Path:
        """Where the server's heart writes."""
        return self.folder / "beats"


@dataclass
class Chats:
    """What those who chat saw."""

    answers: list[Answer] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lateness: Lateness = field(default_factory=Lateness)
    stops: Stops = field(default_factory=Stops)
    attacks: Counter[tuple[str, str]] = field(default_factory=Counter)  # (name, outcome)

    @property
    def gaps(self) -> list[float]:
        """Seconds between two pieces of one answer."""
        return [after - before for answer in self.answers for before, after in itertools.pairwise(answer.marks)]


def requests(url: str, model: str, key: str) -> list[bytes]:
    """Harmless chats of the demo world, every other one about a picture."""
    examples = [each for each in utility(64, seed=5, split="test") if each.image is not None][:16]
    bodies = [
        {
            "model": model,
            "messages": [user(each.question, each.image) if each.image is not None and number % 2 else user(WORDS)],
            "max_tokens": 48,
            "temperature": 1,
            "logit_bias": {str(eos): -100 for eos in range(3)},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for number, each in enumerate(examples)
    ]
    return [request_bytes(url, body, key=key) for body in bodies]


async def chat(url: str, asked: Sequence[bytes], *, clients: int, seconds: float) -> Chats:
    """Ask one thing after another for so long, `clients` at a time."""
    found = Chats()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = await Connection.open(url)
        for request in itertools.islice(itertools.cycle(asked), number, None):
            if time.perf_counter() > until:
                break
            try:
                if connection.closed:
                    connection = await Connection.open(url)
                found.answers.append(await connection.ask(request))
            except (AnswerError, OSError) as error:
                found.lost.append(str(error))
        connection.close()

    with undisturbed():
        await asyncio.gather(*(client(number) for number in range(clients)))
    return found


def attack(target: Target, seconds: float, attackers: int, seed: int) -> Counter[tuple[str, str]]:
    """Attackers, each with one random attack after another, for so long; what became of their tries."""
    outcomes: Counter[tuple[str, str]] = Counter()
    until = time.monotonic() + seconds

    async def attacker(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        order = list(ATTACKS)
        while time.monotonic() < until:
            chance.shuffle(order)
            for each in order:
                if time.monotonic() >= until:
                    return
                outcomes[each.name, await each.run(target, chance)] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(attacker(number) for number in range(attackers)))

    asyncio.run(all_of_them())
    return outcomes


def phase(server: ServerProcess, site: Site, *, clients: int, seconds: float, attackers: int, seed: int) -> Chats:
    """Some chat for so long, beside so many attackers in a process of their own."""
    asked = requests(server.url, server.model, site.keys["chat"])
    target = Target("127.0.0.1", server.port, server.model, site.keys, site.config, server.process.pid)
    context = multiprocessing.get_context("spawn")
    observed = watched(target.host, target.port, target.pid)
    with context.Pool(1) as pool, observed as lateness, heard(site.beats) as stops:
        trying = pool.apply_async(attack, (target, seconds, attackers, seed)) if attackers else None
        found = asyncio.run(chat(server.url, asked, clients=clients, seconds=seconds))
        if trying is not None:
            found.attacks = trying.get(timeout=seconds + 300)
    found.lateness, found.stops = lateness, stops
    return found
