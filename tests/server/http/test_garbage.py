"""Full collections of garbage come when few objects are alive, and Python begins none by itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from server.http import garbage
from server.http.garbage import FullCollections
from tests.waiting import until


class Cycle:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullCollections]:
    """Begun, without the objects of all tests being frozen for good."""
    monkeypatch.setattr(garbage, "PAUSE_SECONDS", 0.001)
    before = gc.get_threshold()
    yield FullCollections()
    gc.set_threshold(*before)
    gc.unfreeze()


def full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def make(count: int) -> list[Any]:
    return [[] for _ in range(count)]


@pytest.mark.asyncio
async def test_none_begins_while_a_large_body_is_read_and_one_comes_after_it(collections: FullCollections) -> None:
    collections.begin()
    begun = full_collections()
    body = make(1_000_000)  # in which Python alone would begin several
    assert full_collections() == begun
    assert gc.get_count()[2] > 0
    assert not collections.is_quiet()
    del body
    assert collections.is_quiet()
    cycle = weakref.ref(Cycle())
    await until(lambda: cycle() is None, "a collection")
    assert full_collections() > begun


@pytest.mark.asyncio
async def test_where_it_never_gets_quiet_garbage_does_not_wait_for_ever(collections: FullCollections) -> None:
    collections.begin()
    body = make(200_000)
    looks = [collections.is_quiet() for _ in range(garbage.LOOKS)]
    assert looks == [False] * (garbage.LOOKS - 1) + [True]
    del body


@pytest.mark.asyncio
async def test_where_nothing_was_made_nothing_is_looked_for_and_free_memory_goes_back_all_the_same(
    collections: FullCollections, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[None] = []
    monkeypatch.setattr(garbage, "return_free_pages", lambda: returned.append(None))
    collections.begin()
    begun = full_collections()
    await until(lambda: len(returned) > 1, "looks")
    assert full_collections() == begun
