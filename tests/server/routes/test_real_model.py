"""The real model behind the whole server, where `make real-model` has brought it: what `model.generate` says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.load import load_backbone
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from tests.server.in_thread import engine_client
from tests.server.scripted import MODEL, serving

TOKENS = 24
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name three colours."}],
    [
        {"role": "user", "content": "Hello! My name is Ada."},
        {"role": "assistant", "content": "Hello Ada, how can I help you?"},
        {"role": "user", "content": "Write a haiku about 12 cats.\n\n  Say my name in it."},
    ],
]


@pytest.mark.real_model
async def test_greedy_answers_are_those_of_generate(real_model: Path) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_model)

    def generated(chat: list[dict[str, Any]]) -> str:
        data = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            ids = stock.generate(**data, do_sample=False, max_new_tokens=TOKENS)[0, data["input_ids"].shape[1] :]
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    expected = [generated(chat) for chat in CHATS]
    assert "Paris" in expected[0]
    backbone = load_backbone(real_model, device="cpu", dtype="float32", max_rows=4, cache_bytes=2**27)
    runner = engine_client(lambda: OwnEngine(backbone, None, Scheduler(4, 4096)))
    async with serving(runner) as http:
        await runner.loaded()
        bodies = [{"model": MODEL, "messages": chat, "temperature": 0, "max_tokens": TOKENS} for chat in CHATS]
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for body in bodies))
    found = [answer.raise_for_status().json()["choices"][0]["message"]["content"] for answer in answers]
    assert found == expected
