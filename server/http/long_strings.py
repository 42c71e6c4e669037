"""JSON with long strings: these are taken out before the rest is parsed, and put back with one copy each.

The interpreter's lock is held while JSON is parsed. orjson copies all of it first and then every string: an image of 30
MiB stops every other request for three times as long as one copy of it takes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

WINDOW = 2**16  # bytes; a string of twice as many holds a whole window, wherever it begins
PIECE = 2**20  # bytes of a string with escapes that are decoded at once
PAIR = 12  # bytes of the longest escape, that of a character in two halves
FIRST_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
Span = tuple[int, int]  # of a string's bytes, without its quotes


class TooLong(ValueError):
    """More bytes than may be parsed at once."""


def loads(body: bytes | bytearray, most: int) -> object:
    """What `orjson.loads` gives, and raises. Raises TooLong where more than `most` bytes are in no long string.

    A string of more bytes than that must be ASCII, as files in base64 are: any other takes four bytes a character.
    """
    if spans := list(_long_strings(body)):
        try:
            return _with_spans_apart(body, spans, most)
        except ValueError:  # not JSON, or what seemed to be a string stands between two
            pass
    if len(body) > most:
        raise TooLong
    return orjson.loads(body)


def _long_strings(body: bytes | bytearray) -> Iterator[Span]:
    """Where long strings may be: between two quotes, with a window between them that has none."""
    at = 0
    while at + WINDOW < len(body):
        if body.find(b'"', at, at + WINDOW) >= 0:
            at += WINDOW
            continue
        begin, end = body.rfind(b'"', 0, at) + 1, body.find(b'"', at + WINDOW)
        if end < 0:
            return
        if begin and not _is_escaped(body, begin - 1) and not _is_escaped(body, end) and _may_be_one(body, begin, end):
            yield begin, end
        at = end + 1


def _is_escaped(body: bytes | bytearray, at: int) -> bool:
    """Whether an odd number of backslashes stands before a byte, or more of them than anybody writes."""
    before = body[max(0, at - WINDOW) : at]
    backslashes = len(before) - len(before.rstrip(b"\\"))
    return backslashes % 2 == 1 or backslashes == WINDOW


def _may_be_one(body: bytes | bytearray, begin: int, end: int) -> bool:
    """Without control characters; found without the lock."""
    return bool(_bytes(body, begin, end).min() >= ord(" "))


def _bytes(body: bytes | bytearray, begin: int, end: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(body, np.uint8, end - begin, begin)


def _with_spans_apart(body: bytes | bytearray, spans: Sequence[Span], most: int) -> object:
    """Parse with marks in the place of the spans, which no client can guess. Raises ValueError."""
    mark = "mark" + secrets.token_hex(16)
    found: dict[str, str] = {}
    parts: list[bytes | bytearray] = []
    last = 0
    for begin, end in spans:
        name = f"{mark}-{len(found)}"
        found[name] = _string(body, begin, end, most)
        parts += [body[last:begin], name.encode()]
        last = end
    rest = b"".join([*parts, body[last:]])
    if len(rest) > most:
        raise TooLong
    return _restored(orjson.loads(rest), mark, found)


def _string(body: bytes | bytearray, begin: int, end: int, most: int) -> str:
    """One string, the lock held for one copy of it, or for a piece of one with escapes. Raises ValueError."""
    is_file = end - begin > most
    if is_file and _bytes(body, begin, end).max() > ord("~"):
        raise ValueError("a long string is not ASCII")
    if body.find(b"\\", begin, end) < 0:
        with memoryview(body) as whole:
            return str(whole[begin:end], "utf-8")
    pieces: list[str] = []
    while begin < end:
        cut = _between_characters(body, begin + PIECE) if begin + PIECE < end else end
        pieces.append(orjson.loads(b'"' + body[begin:cut] + b'"'))
        begin = cut
    if is_file and not all(map(str.isascii, pieces)):
        raise ValueError("a long string is not ASCII")
    return "".join(pieces)


def _between_characters(body: bytes | bytearray, at: int) -> int:
    """The place, or the one before it, at which no character and no escape of a string is cut."""
    for _ in range(3):
        at -= body[at] & 0xC0 == 0x80  # within a character of UTF-8
    escape = body.rfind(b"\\", at - PAIR, at)
    if escape < 0 or _is_escaped(body, escape):
        return at
    half = escape - PAIR // 2
    return half if FIRST_HALF.fullmatch(body, half, escape) and not _is_escaped(body, half) else escape


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
