"""The engine's loop in a thread of the test's process: the same loop and wire as in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from models.grammar import plain_json
from server.engine.client import EngineClient
from server.engine.host import Inputs
from server.engine.loop import EngineLoop
from server.engine.protocol import Engine
from tests.server.fakes import as_any


class InThread:
    """Runs what `make` makes. A thread cannot be killed: once its connection is closed, it ends with its step."""

    def __init__(self, make: Callable[[], Engine[Any]]) -> None:
        self._make = make
        self._connection, theirs = socket.socketpair()
        self.loop = EngineLoop(theirs, self._load)
        self.thread = threading.Thread(target=self.loop.run, name="engine", daemon=True)
        self._loaded = threading.Event()
        self._made: Engine[Any] | BaseException | None = None

    def _load(self, _: object) -> Engine[Any]:
        try:
            self._made = made = self._make()
        except BaseException as error:
            self._made = error
            raise
        else:
            return made
        finally:
            self._loaded.set()

    def connect(self) -> socket.socket:
        self.thread.start()
        return self._connection

    def kill(self) -> None:
        pass

    async def ended(self, seconds: float) -> str | None:
        if self.thread.ident is not None:
            await asyncio.to_thread(self.thread.join, seconds)
        return None if self.thread.is_alive() else "has ended"

    def inputs(self) -> Inputs:
        """What the fake or tiny model itself makes prompts with."""
        self._loaded.wait()
        if isinstance(self._made, BaseException):
            raise self._made
        assert self._made is not None
        backbone: Any = as_any(self._made).backbone
        tokenizer = backbone.tokenizer
        is_fast = hasattr(tokenizer, "backend_tokenizer")
        return Inputs(as_any(getattr(backbone, "inputs", None)), tokenizer, plain_json(tokenizer) if is_fast else "")


def engine_client(make: Callable[[], Engine[Any]], **options: Any) -> EngineClient:
    """A client of an engine that is made in a thread; `options` are its own."""
    host = InThread(make)
    return EngineClient(host, host.inputs, **{"max_live": 100, **options})
