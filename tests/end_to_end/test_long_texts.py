"""Texts of a megabyte, asked of a real server: refused early on every route, and the event loop goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from benchmarks.siege.observer import watched
from tests.end_to_end.processes import ServerProcess

LENGTH = 1_000_000
TEXTS = {
    "words": "hello there " * (LENGTH // 12),
    "one letter": "a" * LENGTH,
    "four bytes each": "\N{GRINNING FACE}" * LENGTH,
    "special tokens": "<image>" * (LENGTH // 7),
}
BODIES: dict[str, Any] = {
    "/tokenize": lambda text: {"prompt": text, "return_token_strs": True},
    "/v1/completions": lambda text: {"prompt": [text] * 4},
    "/v1/moderations": lambda text: {"input": [text] * 4},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
}


@pytest.mark.chance
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_far_beyond_the_context_is_400_and_stops_nobody(guarded: ServerProcess, name: str) -> None:
    def ask(path: str) -> httpx.Response:
        body = {"model": guarded.model, **BODIES[path](TEXTS[name])}
        return httpx.post(guarded.url + path, json=body, timeout=120)

    with watched("127.0.0.1", guarded.port, guarded.process.pid) as found, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, BODIES))
    for answer in answers:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    # What the server itself computes while `/health` waits for its answer; a second and more where the lock is held.
    assert max(found.own) < 0.5
