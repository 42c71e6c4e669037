"""An OpenAI-compatible server on loopback that answers what a test wants it to answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], Response | str]


def completion(text: str | None) -> Response:
    """A whole `chat.completion` with this text."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


@dataclass
class FakeServer:
    """Collects request bodies; `answer` makes each response (a string: the text of a completion)."""

    answer: Answer = lambda _: "hello"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    owner: str = "somebody"
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def complete(self, http: Request) -> Response:
        body = await http.json()
        self.bodies.append(body)
        said = self.answer(body)
        return completion(said) if isinstance(said, str) else said

    async def models(self, _: Request) -> Response:
        found = {"id": "m", "object": "model", "created": 1, "owned_by": self.owner}
        return JSONResponse({"object": "list", "data": [found]})


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", server.complete, methods=["POST"]),
            Route("/v1/models", server.models),
        ]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield server
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def status(code: int) -> Response:
    return PlainTextResponse("no", code)
