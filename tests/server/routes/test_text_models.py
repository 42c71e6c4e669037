"""A model without eyes behind the whole server: an image is refused by name, everything else is as with any model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from models.backbone import Backbone
from models.cache import BLOCK
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from tests.end_to_end.processes import data_url
from tests.exposition import metric_of
from tests.server.guards import random_guard
from tests.server.in_thread import engine_client
from tests.server.scripted import MODEL, serving
from tests.tiny import TinyModels, closed_after, picture

WORDS = " ".join(f"word {number}" for number in range(40))
PARTS = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": data_url(picture(1))}},
]


@pytest.fixture
def backbone(tiny_models: TinyModels) -> Any:
    backbone = tiny_models.backbone("llama", remembers=True)
    backbone.forget()
    yield from closed_after(backbone)


@pytest.fixture
async def client(backbone: Backbone) -> AsyncIterator[httpx.AsyncClient]:
    guard = random_guard(backbone.info)
    runner = engine_client(lambda: OwnEngine(backbone, guard, Scheduler(8, 4096)))
    async with serving(runner) as http:
        await runner.loaded()
        yield http


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PARTS}]}, "messages.0.content.1.type"),
        ("/tokenize", {"messages": [{"role": "user", "content": PARTS}]}, "messages.0.content.1.type"),
        ("/v1/moderations", {"input": PARTS}, "input.1.type"),
    ],
)
async def test_an_image_is_refused_by_name(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"] == f"Invalid value for '{param}': 'image_url'; this model reads text only."
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_an_image_that_would_have_to_be_fetched_is_refused_before(client: httpx.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://images.example.com/1.png"}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
    answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.content.0.type")


async def test_usage_cache_and_metrics_are_of_texts(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 2}
    usages = [
        (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()["usage"] for _ in range(2)
    ]
    known = (usages[0]["prompt_tokens"] - 1) // BLOCK * BLOCK
    assert known > 0
    details = [usage["prompt_tokens_details"] for usage in usages]
    assert details == [{"cached_tokens": 0, "image_tokens": 0}, {"cached_tokens": known, "image_tokens": 0}]
    metrics = (await client.get("/metrics")).text
    decisions = [line for line in metrics.splitlines() if line.startswith("autosteer_guard_decisions_total{")]
    assert decisions
    counted = {line.split('modality="')[1].split('"')[0] for line in decisions if float(line.split()[-1]) > 0}
    assert counted == {"text"}
    assert metric_of(metrics, "autosteer_prompt_tokens_total") >= 2 * usages[0]["prompt_tokens"]


async def test_it_is_listed_scored_and_completes(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).raise_for_status().json()["data"]
    assert [model["id"] for model in listed] == [MODEL]
    scored = await client.post("/v1/moderations", json={"model": MODEL, "input": ["Hello", "And now?"]})
    results = scored.raise_for_status().json()["results"]
    assert [result["category_applied_input_types"]["unsafe"] for result in results] == [["text"], ["text"]]
    assert all(0 <= result["category_scores"]["unsafe"] <= 1 for result in results)
    completed = await client.post("/v1/completions", json={"model": MODEL, "prompt": "Hello", "max_tokens": 3})
    assert completed.raise_for_status().json()["usage"]["completion_tokens"] > 0
