"""JSON with long strings: these are taken out before the rest is parsed, and put back with one copy each.

The interpreter's lock is held while JSON is parsed. orjson copies all of it first and then every string: an image of 30
MiB stops every other request for three times as long as one copy of it takes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

WINDOW = 2**16  # bytes; a string of twice as many holds a whole window, wherever it begins
Span = tuple[int, int]  # of a string's bytes, without its quotes


def loads(body: bytes | bytearray) -> object:
    """What `orjson.loads` gives, and raises."""
    if spans := list(_long_strings(body)):
        try:
            return _with_spans_apart(body, spans)
        except ValueError:  # not JSON, or what seemed to be a string stands between two
            pass
    return orjson.loads(body)


def _long_strings(body: bytes | bytearray) -> Iterator[Span]:
    """Where long strings without escapes may be: between two quotes, with a window between them that has none."""
    at = 0
    while at + WINDOW < len(body):
        if body.find(b'"', at, at + WINDOW) >= 0:
            at += WINDOW
            continue
        begin, end = body.rfind(b'"', 0, at) + 1, body.find(b'"', at + WINDOW)
        if end < 0:
            return
        if begin and not _is_escaped(body, begin - 1) and _is_plain(body, begin, end):
            yield begin, end
        at = end + 1


def _is_escaped(body: bytes | bytearray, quote: int) -> bool:
    before = quote
    while before and body[before - 1] == ord("\\"):
        before -= 1
    return (quote - before) % 2 == 1


def _is_plain(body: bytes | bytearray, begin: int, end: int) -> bool:
    """Neither escapes nor control characters."""
    if body.find(b"\\", begin, end) >= 0:
        return False
    return bool(np.frombuffer(body, np.uint8, end - begin, begin).min() >= ord(" "))  # without the lock


def _with_spans_apart(body: bytes | bytearray, spans: Sequence[Span]) -> object:
    """Parse with marks in the place of the spans, which no client can guess. Raises ValueError."""
    mark = "mark" + secrets.token_hex(16)
    found: dict[str, str] = {}
    parts: list[bytes | memoryview] = []
    last = 0
    with memoryview(body) as whole:
        for begin, end in spans:
            name = f"{mark}-{len(found)}"
            found[name] = str(whole[begin:end], "utf-8")
            parts += [whole[last:begin], name.encode()]
            last = end
        parts.append(whole[last:])
        rest = b"".join(parts)
        del parts
    data = orjson.loads(rest)
    return _restored(data, mark, found)


def _restored(data: object, mark: str, found: dict[str, str]) -> object:
    """A value in which each mark is what it stands for."""

    def put_back(value: Any) -> Any:  # noqa: ANN401 - any JSON value
        return found[value] if isinstance(value, str) and value.startswith(mark) else value

    left: list[object] = [data]
    while left:
        value = left.pop()
        if isinstance(value, list):
            value[:] = map(put_back, value)
            left += [each for each in value if isinstance(each, (list, dict))]
        elif isinstance(value, dict):
            items = [(put_back(key), put_back(each)) for key, each in value.items()]
            value.clear()
            value.update(items)
            left += [each for _, each in items if isinstance(each, (list, dict))]
    return put_back(data)
