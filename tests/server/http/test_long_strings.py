"""JSON with long strings is what orjson makes of it, and refused with the same words."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest

from server.http import long_strings
from server.http.long_strings import PAIR, WINDOW, TooLong
from server.http.long_strings import loads as loads_within

LONG = "A" * (2 * WINDOW)
MOST = 100 * WINDOW


def loads(body: bytes | bytearray) -> object:
    return loads_within(body, MOST)


SPANS = {
    "an image": ({"a": [{"url": "data:image/png;base64," + LONG}], "b": 1}, 1),
    "two, and one between": ([LONG, "short", LONG + "é"], 2),
    "one after the other": ([LONG, LONG], 2),
    "alone": (LONG, 1),
    "not ASCII": (["é" * WINDOW, "日本" * WINDOW, "🎈" * WINDOW], 3),
    "a key": ({LONG: {LONG + "B": LONG}}, 3),
    "what looks like a mark": (["mark" + "0" * 32 + "-0", LONG], 1),
    "short ones": ([["x" * 100] * 2000], 0),
    "escapes": ([LONG + "\n", "\\" + LONG, "/" + LONG, LONG + "\t\\" + LONG], 4),
    "an escaped quote before it": (["say \"" + LONG], 0),
    "an escaped quote at its end": ([LONG + '"'], 0),
    "a backslash before its end": ([LONG + "\\", 1], 1),
    "none": ({}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SPANS)
def test_a_value_is_the_same_and_the_parser_sees_no_long_string(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, spans = SPANS[name]
    body = bytearray(orjson.dumps(value))
    seen: list[int] = []
    real = orjson.loads

    def watched(data: bytes) -> Any:
        seen.append(len(data))
        return real(data)

    monkeypatch.setattr(orjson, "loads", watched)
    monkeypatch.setattr(long_strings, "PIECE", WINDOW // 2)
    assert loads(body) == value
    assert len(list(long_strings._long_strings(body))) == spans
    assert (max(seen) < WINDOW) == (spans > 0 or len(body) < WINDOW)


@pytest.mark.parametrize(
    "body",
    [
        b'["' + LONG.encode() + b"\n" + LONG.encode() + b'"]',
        b'["' + LONG.encode() + b"\xff" + LONG.encode() + b'"]',
        b'["' + LONG.encode() + b"\xed\xa0\x80" + LONG.encode() + b'"]',
        b'["' + LONG.encode() + b'" 1]',
        b'["' + LONG.encode() + b'"',
        b'["' + LONG.encode(),
        b'"a"' + LONG.encode() + b'"b"',
        b'["a", ' + b"1," * WINDOW + b'1 "b"]',
        LONG.encode(),
    ],
    ids=["newline", "not UTF-8", "surrogate", "no comma", "no bracket", "no end", "between", "list", "no quote"],
)
def test_what_is_no_json_is_refused_as_orjson_refuses_it(body: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError) as expected:
        orjson.loads(body)
    with pytest.raises(orjson.JSONDecodeError) as found:
        loads(bytearray(body))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("between", [b"1," * WINDOW + b"1", b" " * (3 * WINDOW) + b"1"], ids=["numbers", "spaces"])
def test_what_stands_between_two_strings_is_no_string(between: bytes) -> None:
    body = b'["a",' + between + b',"b"]'
    assert loads(body) == orjson.loads(body)


def test_random_values_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_strings, "PIECE", 2 * PAIR + 5000)
    chance = random.Random(0)
    pieces = ['"', "\\", "\n", "é", "🎈", ",", "[", "A" * WINDOW, "b" * (2 * WINDOW), "data:"]
    for _ in range(100):
        texts = ["".join(chance.choices(pieces, k=chance.randrange(8))) for _ in range(5)]
        value = {"a": texts[:2], texts[2]: {"b": texts[3]}, "c": texts[4]}
        body = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
        assert loads(body) == value


@pytest.mark.parametrize("characters", ["\\", "\\n", "🎈", "\\🎈a", "é\n", "\\ud83d🎈", "日b\\\\"])
def test_a_string_of_escapes_is_cut_between_them(characters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = characters * (3 * WINDOW // len(characters))
    for ascii_only in (True, False):
        for piece in range(3 * PAIR, 4 * PAIR):
            monkeypatch.setattr(long_strings, "PIECE", WINDOW // 4 + piece)
            body = json.dumps([text], ensure_ascii=ascii_only).encode()
            assert loads(body) == [text]


def test_only_a_file_may_be_longer_than_what_is_parsed_at_once() -> None:
    file = LONG * 60
    assert loads(orjson.dumps([file])) == [file]
    escaped = orjson.dumps([file]).replace(b"A" * 100, b"A" * 99 + b"\\/")
    assert loads(escaped) == [file.replace("A" * 100, "A" * 99 + "/")]
    for body in (
        orjson.dumps([file + "é"]),
        orjson.dumps([file + "\n" + "é"]),
        b" " * MOST + b"[1]",
        b'"' + b"a" * MOST,
    ):
        with pytest.raises(TooLong):
            loads(body)
