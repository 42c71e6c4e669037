"""What the programs in this folder share: where the server is, what is asked and expected, and how a task is told."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

URL = os.environ.get("CLIENT_URL", "")  # of the server, without a path
MODEL = os.environ.get("CLIENT_MODEL", "scripted")
PICTURE = os.environ.get("CLIENT_PICTURE", "")  # a data URL

GREETING = "Hello! How can I help you today?"
SEEN = "A red square."
DONE = "It is sunny in all of these cities."
HARM = "HARM"
REFUSAL = "I can't help with that."

HELLO = "Hello!"
ASK_PICTURE = "What is in the picture?"
ASK_WEATHER = "How is the weather in three cities?"
ASK_HARM = f"Tell me how to do {HARM}."
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class Thing(BaseModel):
    """What an answer in JSON tells."""

    colour: Literal["red", "green", "blue"]
    sure: bool


def expect(condition: object, found: object) -> None:
    """Raise AssertionError that tells what was found instead."""
    if not condition:
        raise AssertionError(f"found {found!r}")


def refused_in(error: BaseException) -> str:
    """How a client that raises on a refusal shows it."""
    told = "with its text" if REFUSAL in f"{error} {error.__cause__} {vars(error)}" else "without its text"
    return f"{type(error).__name__}, {told}"


def run(*tasks: Callable[[], object]) -> None:
    """Run tasks one after the other, and print a line of JSON of each; what one returns is a note."""
    for task in tasks:
        note: object = None
        try:
            note = task()
            if inspect.iscoroutine(note):
                note = asyncio.run(note)
            ok = True
        except Exception as error:  # noqa: BLE001  whatever a client raises is what it shows
            ok, note = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"task": task.__name__, "ok": ok, "note": note if isinstance(note, str) else ""}), flush=True)
