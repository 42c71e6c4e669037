"""Every family behind the whole server: what HTTP answers is, letter for letter, what `model.generate` says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import takewhile
from typing import Any

import httpx
import pytest

from models.backbone import Backbone
from models.cache import BLOCK
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from tests.end_to_end.processes import data_url
from tests.reference import stock
from tests.server.in_thread import engine_client
from tests.server.scripted import MODEL, content_of, events_of, serving
from tests.tiny import TinyModels, chats_of, pictures

TOKENS = 24


@pytest.fixture
async def client(backbone: Backbone) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application over a real engine."""
    runner = engine_client(lambda: OwnEngine(backbone, None, Scheduler(8, 4096)))
    async with serving(runner) as http:
        await runner.loaded()
        yield http


def over_http(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their pictures as data URLs."""
    left: Iterator[Any] = iter(pictures(messages))
    return [
        message
        | {
            "content": [
                {"type": "image_url", "image_url": {"url": data_url(next(left))}} if part["type"] == "image" else part
                for part in message["content"]
            ]
        }
        for message in messages
    ]


async def test_streamed_and_whole_text_are_those_of_generate(
    client: httpx.AsyncClient, backbone: Backbone, family: str, stock_models: Any
) -> None:
    for name, messages in chats_of(family).items():
        data = stock.inputs(backbone.inputs._processor, messages, pictures(messages))
        forced = stock.generate(stock_models(family), data, TOKENS)  # it says on after an end token
        ids = list(takewhile(lambda token: token not in backbone.info.eos_ids, forced))
        expected = backbone.tokenizer.decode(ids, skip_special_tokens=True)
        body = {"model": MODEL, "messages": over_http(messages), "temperature": 0, "max_tokens": TOKENS}

        whole = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
        assert whole["choices"][0]["message"]["content"] == expected, name
        assert whole["usage"]["completion_tokens"] == len(ids)

        streamed = (await client.post("/v1/chat/completions", json=body | {"stream": True})).raise_for_status()
        assert content_of(events_of(streamed.text)) == expected, name


async def test_usage_tells_what_of_a_prompt_was_known(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava", remembers=True)
    backbone.forget()
    runner = engine_client(lambda: OwnEngine(backbone, None, Scheduler(8, 4096)))
    text = " ".join(f"word {number}" for number in range(60))
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "n": 2}
    async with serving(runner) as http:
        await runner.loaded()
        answers = [(await http.post("/v1/chat/completions", json=body)).raise_for_status().json() for _ in range(2)]
    prompt = answers[0]["usage"]["prompt_tokens"]
    known = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert known == [0, (prompt - 1) // BLOCK * BLOCK]
    assert known[1] > 0
