"""What an `EngineClient` needs of the place where the engine runs, and of the model's folder."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from models.inputs import InputBuilder


class Host(Protocol):
    """Where an `EngineLoop` runs."""

    def connect(self) -> socket.socket:
        """The server's side of its connection; it begins to load, if it has not."""

    def kill(self) -> None:
        """End it now, whatever it does; nothing happens if it has ended."""

    async def ended(self, seconds: float) -> str | None:
        """How it has ended, waiting for that for so long; None if it has not."""


class Inputs(NamedTuple):
    """What prompts and texts are made with: of the model's folder, without its weights."""

    builder: InputBuilder
    tokenizer: Any
    tokenizer_json: str = ""  # for the process that compiles schemas; to make it holds the interpreter's lock for long
