"""Bodies under limits: counted before they are parsed, and parsed beside the event loop where they hold much."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import orjson
import pytest

from server.errors import BadRequest
from server.http import body as bodies
from server.http.body import FEW_VALUES, JsonLimits, check_containers, count_values, validated


@pytest.fixture(name="threads", scope="module")
def make_threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def where(_: object) -> str:
    return threading.current_thread().name


async def test_few_values_are_validated_on_the_event_loop_and_many_beside_it(threads: Executor) -> None:
    few, many = (orjson.dumps([1] * number) for number in (FEW_VALUES - 10, FEW_VALUES + 10))
    here = threading.current_thread().name
    assert await validated(few, where, JsonLimits(10**6, 10), threads) == here
    assert await validated(many, where, JsonLimits(10**6, 10), threads) != here


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b"[]," * 2**20 + b"[]]}",
        b'{"prompt":[' + b"1," * 2**20 + b"1]}",
        b'{"messages":[{"role":"user","content":[' + b'{"type":"text","text":""},' * 2**18 + b"1]}]}",
        b"[" * 2**20,
        b'{"a":' * 2**20,
    ],
    ids=["lists", "numbers", "parts", "deep lists", "deep objects"],
)
async def test_more_values_than_the_limit_are_refused_and_never_parsed(
    body: bytes, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "parsed", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(BadRequest, match=r"commas and brackets; the limit is 200000 \(max_json_values\)"):
        await validated(body, where, JsonLimits(200_000, 20_000), threads)


async def test_the_loop_turns_while_a_body_is_counted() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turn())
    assert await count_values(b"," * (8 * bodies.COUNTED_AT_ONCE)) == 8 * bodies.COUNTED_AT_ONCE
    task.cancel()
    assert turns >= 7


def test_containers_are_counted_exactly() -> None:
    data = {"a": [{"b": []}, {}], "c": "[{[{,,,,"}
    check_containers(data, 5)
    with pytest.raises(BadRequest, match=r"more than 4 arrays and objects \(max_json_containers\)"):
        check_containers(data, 4)


async def test_the_limit_of_containers_holds_for_small_bodies_too(threads: Executor) -> None:
    body = orjson.dumps([[], [], []])
    assert await validated(body, lambda data: data, JsonLimits(100, 4), threads) == [[], [], []]
    with pytest.raises(BadRequest, match=r"more than 3 arrays and objects \(max_json_containers\)"):
        await validated(body, lambda data: data, JsonLimits(100, 3), threads)


async def test_a_text_of_brackets_is_only_counted_as_values(threads: Executor) -> None:
    body = orjson.dumps({"text": "[{," * 5000})
    found = await validated(body, lambda data: data, JsonLimits(20_000, 1), threads)
    assert found == {"text": "[{," * 5000}


async def test_a_large_body_is_parsed_beside_the_event_loop_however_few_its_values(threads: Executor) -> None:
    body = orjson.dumps(["x" * bodies.COUNTED_AT_ONCE])
    here = threading.current_thread().name
    assert await validated(body, where, JsonLimits(10, 10), threads) != here


async def test_more_text_than_can_be_a_prompt_is_refused_unparsed(threads: Executor) -> None:
    with pytest.raises(BadRequest, match="more than 5000 bytes that are no file"):
        await validated(b'"' + b"\\u0041" * 1000 + b'"', where, JsonLimits(10, 10, 5000), threads)
