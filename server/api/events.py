"""OpenAI's server-sent events, as bytes."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
HOLE = "\0"  # no text that is served holds it


def event(data: object) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Template:
    """An event in which only one text changes: wherever its data says `HOLE`. The rest is written once."""

    def __init__(self, data: Any) -> None:  # noqa: ANN401  whatever JSON can say
        self._parts = event(data).split(orjson.dumps(HOLE))

    def filled(self, text: str) -> bytes:
        """The event with this text."""
        return orjson.dumps(text).join(self._parts)
