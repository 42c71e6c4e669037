"""How many series `/metrics` has: as many after many clients and wild input as after a few requests of each kind."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from server.access.keys import hash_key
from server.request import Finish, RequestFailed
from server.settings.schema import Settings
from steering.drift import LOOK_EVERY
from steering.policy import ShadowDecision, Verdict
from tests.server.scripted import Script, ScriptedRunner, application, body, client_of, data_url, png

KEYS = 1000
POLICIES: dict[str, Any] = {
    "strict": {"mode": "block", "threshold": 0.3},
    "free": {"mode": "monitor", "may_loosen": True},
    "unscored": {"mode": "off"},
}
NAMES = ["default", *POLICIES]
PICTURE = data_url(png())
MODES = ("block", "monitor", "off")
KINDS = 7  # of answers
MISTAKES: list[Callable[[random.Random], dict[str, Any]]] = [
    lambda chance: {"model": wild(chance)},
    lambda chance: {wild(chance): 1},
    lambda chance: {"temperature": 3 + chance.random()},
    lambda chance: {"max_tokens": chance.randrange(5000, 10**6)},
]


class Runner(ScriptedRunner):
    """Answers as the prompt's first character says, with a shadow beside it."""

    def submit(self, parcel: Any, deliver: Any) -> None:
        for request in parcel.requests:
            request.shadow = ShadowDecision(Verdict.MONITORED, 0.7, 0.0, shadow="candidate")
        super().submit(parcel, deliver)
        self.requests.clear()


def script(text: str) -> Script:
    kinds = [
        Script.saying("ok", score=0.1),
        Script.saying("ok", score=0.55, verdict=Verdict.STEERED, finish=Finish.CONTENT_FILTER),
        Script(score=0.9, verdict=Verdict.BLOCKED, finish=Finish.CONTENT_FILTER),
        Script.saying("ok", score=0.9, verdict=Verdict.MONITORED),
        Script.saying("much more than is asked for", score=0.2),
        Script(finish=Finish.ERROR, error=RequestFailed("x")),
        Script.saying("ok", score=None),
    ]
    return kinds[ord(text[0]) % KINDS]


def wild(chance: random.Random) -> str:
    """Text that nobody expects, quotes and line ends among it."""
    return "".join(chr(chance.choice([10, 34, 92, 123, chance.randrange(32, 0x2FF)])) for _ in range(12))


async def ask(
    client: httpx.AsyncClient, key: str, text: str, images: list[str], chance: random.Random, **fields: Any
) -> None:
    headers: dict[bytes, bytes] = {
        b"authorization": f"Bearer {key}".encode(),
        b"x-request-id": wild(chance).encode(),
        b"user-agent": wild(chance).encode(),
        b"traceparent": wild(chance).replace("\n", "").encode(),
    }
    await client.post("/v1/chat/completions", json=body(text, *images, **fields), headers=headers)


async def ask_one_of_each(client: httpx.AsyncClient, chance: random.Random) -> None:
    """Every policy, mode that a request may ask for, kind of answer and modality; and every kind of mistake."""
    for policy, mode, kind, images in product(range(len(NAMES)), (None, *MODES), range(KINDS), ([], [PICTURE])):
        guard = None if mode is None else {"mode": mode}
        await ask(client, f"sk-{policy}", chr(KINDS + kind), images, chance, guard=guard, max_tokens=5)
    for number in range(len(MISTAKES) + 3):
        await send_wrong(client, number, chance)
    for policy in range(len(NAMES)):  # drift has figures from its first look on
        await asyncio.gather(*(ask(client, f"sk-{policy}", chr(KINDS), [], chance) for _ in range(LOOK_EVERY)))


async def send(client: httpx.AsyncClient, number: int, chance: random.Random) -> None:
    """Something that no other request is like."""
    if number % 7 == 0:
        await send_wrong(client, chance.randrange(100), chance)
        return
    key = f"sk-{chance.randrange(KEYS)}"
    text = chr(number % 251 + 1) + wild(chance)
    guard = chance.choice([None, {"threshold": chance.random()}, {"mode": chance.choice(MODES)}])
    fields = {"max_tokens": chance.choice([1, 5, 50]), "user": wild(chance), "stream": chance.random() < 0.3}
    await ask(client, key, text, [PICTURE] if number % 50 == 0 else [], chance, guard=guard, **fields)


async def send_wrong(client: httpx.AsyncClient, number: int, chance: random.Random) -> None:
    match number % (len(MISTAKES) + 3):
        case 0:
            await ask(client, wild(chance), "x", [], chance)
        case 1:
            await client.get(
                "/v1/models/" + wild(chance).replace("\n", "%0a"), headers={"authorization": "Bearer sk-1"}
            )
        case 2:
            await client.get(f"/{chance.random()}")
        case mistake:
            await ask(client, "sk-1", "x", [], chance, **MISTAKES[mistake - 3](chance))


async def series(client: httpx.AsyncClient) -> set[tuple[str, str]]:
    """Every series, by its name and labels."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("requests", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_the_number_of_series_does_not_grow(requests: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A few requests of each kind make every series that there is; those of all keys, with wild input, make none."""
    chance = random.Random(6)
    runner = Runner(answer=script, calibration=[i / 4000 for i in range(1000)])
    keys = [{"name": f"key-{i}", "hash": hash_key(f"sk-{i}"), "policy": NAMES[i % len(NAMES)]} for i in range(KEYS)]
    async with client_of(application(runner, keys=keys, policies=POLICIES)) as client:
        await ask_one_of_each(client, chance)
        before = await series(client)
        for start in range(0, requests, 50):
            await asyncio.gather(*(send(client, start + i, chance) for i in range(50)))
        after = await series(client)
    with capsys.disabled():
        print(f"\n{len(before)} series after some of each kind, {len(after)} after {requests} more by {KEYS} keys")
    assert after == before
    labels = [json.loads(labels) for _, labels in after]
    assert {each["policy"] for each in labels if "policy" in each} == set(NAMES)
    allowed = {
        "policy", "mode", "decision", "modality", "le", "finished_reason", "reason", "outcome", "shadow", "acting",
        "model", "architecture", "dtype", "device", "guarded_layer", "guard", "guard_date", "route", "kind",
        "stage", "category",
    }  # fmt: skip
    assert {name for each in labels for name in each} <= allowed
    assert len(after) < 1000


@pytest.mark.parametrize("name", ['x"} 1', "a\nb", "", "ä", "a" * 65, "{}", " ", "../x"])
def test_a_policy_cannot_have_a_hostile_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"policies": {name: {}}})
