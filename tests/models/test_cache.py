"""Random lives of rows against a plain list per row. No model: keys and values are made up and looked up again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.cache import KVCache, OutOfRows, Slot

LAYERS, HEADS, WIDTH, ROWS, CONTEXT = 2, 2, 3, 6, 40


@dataclass(eq=False)
class Life:
    """A row and what must be in it: one number per token."""

    slot: Slot
    numbers: list[float] = field(default_factory=list)


def _states(numbers: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, HEADS, T, WIDTH]` that tell token, layer and head apart."""
    heads = torch.arange(HEADS)[None, :, None, None] / 8
    keys = numbers[:, None, :, None] + heads + layer / 64 + torch.zeros(WIDTH)
    return keys, -keys


class World:
    def __init__(self) -> None:
        self.cache = KVCache(LAYERS, ROWS, CONTEXT)
        self.rows: list[Life] = []
        self.clock = 0.0

    def number(self) -> float:
        self.clock += 1.0
        return self.clock

    def open(self) -> None:
        if len(self.rows) == ROWS:
            with pytest.raises(OutOfRows):
                self.cache.open()
            return
        self.rows.append(Life(self.cache.open()))

    def prefill(self, rows: list[Life], lengths: list[int], *, fails: bool = False) -> None:
        width = max(lengths)
        padding = -99.0
        numbers = [[self.number() for _ in range(length)] for length in lengths]
        batch = torch.tensor([[*row, *[padding] * (width - len(row))] for row in numbers])
        view = self.cache.prefill([row.slot for row in rows], lengths)
        assert view.get_seq_length() == 0
        for layer in range(1 if fails else LAYERS):
            keys, values = _states(batch, layer)
            found = view.update(keys, values, layer)
            assert torch.equal(found[0], keys)
            assert torch.equal(found[1], values)
        if fails:
            return
        view.commit()
        for row, new in zip(rows, numbers, strict=True):
            row.numbers = new

    def decode(self, rows: list[Life], window: int | None, *, fails: bool = False) -> None:
        view = self.cache.decode([row.slot for row in rows])
        ordered = [rows[place] for place in view.order]
        new = [self.number() for _ in ordered]
        expected = [[*row.numbers, number] for row, number in zip(ordered, new, strict=True)]
        total = max(map(len, expected))
        assert view.positions(torch.device("cpu")).tolist() == [len(row.numbers) for row in ordered]
        for layer in range(1 if fails else LAYERS):
            keys, values = _states(torch.tensor(new)[:, None], layer)
            found_keys, found_values = view.update(keys, values, layer)
            assert found_keys.shape == (len(rows), HEADS, total, WIDTH)
            assert found_values.isfinite().all()
            for place, numbers in enumerate(expected):
                keys, values = _states(torch.tensor([numbers]), layer)
                assert torch.equal(found_keys[place, :, : len(numbers)], keys[0])
                assert torch.equal(found_values[place, :, : len(numbers)], values[0])
        if fails:
            return
        self._check_mask(view.mask(torch.device("cpu"), window), expected, window, total)
        view.commit()
        for row, numbers in zip(ordered, expected, strict=True):
            row.numbers = numbers

    def _check_mask(self, mask: Tensor | None, rows: list[list[float]], window: int | None, total: int) -> None:
        seen = mask if mask is not None else torch.ones(len(rows), 1, 1, total, dtype=torch.bool)
        for place, numbers in enumerate(rows):
            first = max(0, len(numbers) - window) if window is not None else 0
            expected = [first <= token < len(numbers) for token in range(total)]
            assert seen[place, 0, 0].tolist() == expected

    def close(self, row: Life) -> None:
        self.rows.remove(row)
        self.cache.close(row.slot)
        assert row.slot.length == 0

    def check(self) -> None:
        assert self.cache.rows == len(self.rows)
        assert self.cache.tokens == sum(len(row.numbers) for row in self.rows)
        assert sorted(row.slot.index for row in self.rows) == list(range(len(self.rows)))
        for tensor in self.cache._tensors():
            assert not tensor[len(self.rows) :].any(), "a closed row left something behind"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_lives(data: st.DataObject) -> None:
    world = World()
    for _ in range(data.draw(st.integers(5, 30))):
        fresh = [row for row in world.rows if not row.numbers]
        running = [row for row in world.rows if row.numbers and len(row.numbers) < CONTEXT]
        step = data.draw(st.sampled_from(["open", "open", "prefill", "decode", "decode", "decode", "close", "fail"]))
        if step == "open":
            world.open()
        elif step == "prefill" and fresh:
            rows = data.draw(st.permutations(fresh))[: data.draw(st.integers(1, len(fresh)))]
            world.prefill(rows, [data.draw(st.integers(1, CONTEXT - 5)) for _ in rows])
        elif step == "decode" and running:
            rows = data.draw(st.permutations(running))
            if data.draw(st.booleans()):
                rows = rows[: data.draw(st.integers(1, len(rows)))]
            world.decode(rows, data.draw(st.sampled_from([None, 1, 5, CONTEXT])))
        elif step == "close" and world.rows:
            world.close(data.draw(st.sampled_from(world.rows)))
        elif step == "fail" and running:
            world.decode(running, None, fails=True)
        elif step == "fail" and fresh:
            world.prefill(fresh, [3] * len(fresh), fails=True)
        world.check()
    while world.rows:
        world.close(data.draw(st.sampled_from(world.rows)))
        world.check()
    assert (world.cache.rows, world.cache.tokens) == (0, 0)


def test_decoding_all_rows_copies_nothing() -> None:
    world = World()
    for _ in range(3):
        world.open()
    world.prefill(world.rows, [4, 4, 7])
    for rows in (world.rows, world.rows[::-1]):
        view = world.cache.decode([row.slot for row in rows])
        keys, _ = view.update(*_states(torch.zeros(3, 1), 0), 0)
        assert keys.data_ptr() == world.cache._tensors()[0].data_ptr()
        assert keys.untyped_storage().nbytes() > keys.nbytes


def test_a_large_empty_cache_gives_its_memory_back() -> None:
    cache = KVCache(1, 2, 10_000)
    slot = cache.open()
    cache.prefill([slot], [5000]).update(*_states(torch.zeros(1, 5000), 0), 0)
    assert cache._tensors()
    cache.close(slot)
    assert not cache._tensors()


def test_memory_grows_with_need() -> None:
    cache = KVCache(1, 64, 10_000)
    slot = cache.open()
    cache.prefill([slot], [10]).update(*_states(torch.zeros(1, 10), 0), 0)
    assert cache._tensors()[0].shape == (4, HEADS, 256, WIDTH)


def test_closing_a_slot_that_is_not_open() -> None:
    cache = KVCache(1, 2, 10)
    slots = [cache.open(), cache.open()]
    cache.close(slots[0])
    with pytest.raises(AssertionError, match="slot 0 is not open"):
        cache.close(slots[0])
