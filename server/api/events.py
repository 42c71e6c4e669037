"""Server-sent events, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which readers skip
HOLE = "\0"  # no text that is served holds it


def event(data: object) -> bytes:
    """Encode one event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """Encode one event that says its type twice: by its name, and in its data."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))


class Template:
    """An event in which only one text changes: wherever its data says `HOLE`. The rest is written once."""

    def __init__(self, data: Any) -> None:  # noqa: ANN401  whatever JSON can say
        self._parts = event(data).split(orjson.dumps(HOLE))

    def filled(self, text: str) -> bytes:
        """The event with this text."""
        return orjson.dumps(text).join(self._parts)
