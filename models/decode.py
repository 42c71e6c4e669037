"""Attention of rows that add one token each, over their blocks: what is made for one step serves those after it.

It costs what the rows hold, whatever the longest of them, and copies none of it where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from models.cache import PagedCache, Table

_RANGE = 8  # blocks that the range of a pass is rounded up to: each new size costs a new kernel on the CPU


class Decode(Protocol):
    """Rows that add one token each, step after step: what is made for one step serves those after it."""

    rows: int

    def advance(self) -> None:
        """Go on to the next step of the same rows, none of which has got another block since."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention of the rows' new tokens: query `[1, H, B, D]`, a layer's storage -> `[B, H, D]`."""


class SingleDecode:
    """Attention of one row by torch's own kernel, which is faster for few: its blocks are brought into order.

    The heads that share a key-value head stand where the kernel expects tokens, so that nothing is repeated.
    """

    rows = 1

    def __init__(self, cache: PagedCache, table: Table, end: int) -> None:
        self._blocks = torch.tensor(table.blocks[: cache.blocks_for(end)], device=cache.shape.device)
        self._end = end

    def advance(self) -> None:
        """Go on to the next step of the same row."""
        self._end += 1

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention as of `Decode.attend`; keys and values `[blocks, kv_heads, size, D]`."""
        first = 0 if window is None else max(0, self._end - window)
        shape = (1, keys.shape[1], -1, keys.shape[-1])
        keys, values = (
            stored.index_select(0, self._blocks).transpose(0, 1).reshape(shape)[:, :, first : self._end]
            for stored in (keys, values)
        )
        output = scaled_dot_product_attention(query.reshape(shape), keys, values, scale=scale)
        return output.view(1, -1, shape[-1])


class DenseDecode:
    """Attention by two batched matrix products over all blocks in use, as one view of the storage.

    The rows' blocks are among its first R; a row has M at most. Each block's scores are computed where it lies, brought
    into the order of the rows for the softmax, and the weights brought back: what moves is `1 / D` of what is read.
    """

    def __init__(self, cache: PagedCache, tables: Sequence[Table], ends: Sequence[int]) -> None:
        device, self._dtype = cache.shape.device, cache.shape.dtype
        lists = [table.blocks[: cache.blocks_for(end)] for table, end in zip(tables, ends, strict=True)]
        self.rows = len(lists)
        self._size = cache.block_size
        self._most = max(map(len, lists))
        self._range = min(-(-(max(map(max, lists)) + 1) // _RANGE) * _RANGE, cache.pool.count + 1)
        owned = [0] * self._range
        for row, blocks in enumerate(lists):
            for place, block in enumerate(blocks):
                owned[block] = row * self._most + place
        flat = [block for blocks in lists for block in (*blocks, *[0] * (self._most - len(blocks)))]
        self._table = torch.tensor(flat, device=device)
        self._owned = torch.tensor(owned, device=device)  # of each block, row and place in it
        self._owner = self._owned // self._most
        uneven = any(len(blocks) < self._most for blocks in lists)
        self._padding = (self._table == 0).view(self.rows, self._most, 1) if uneven else None
        self._ends = torch.tensor(ends, device=device)[:, None]
        self._places = torch.arange(self._most * self._size, device=device)
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, Tensor] = {}

    def advance(self) -> None:
        """Go on to the next step of the same rows."""
        self._ends += 1
        self._masks.clear()

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention as of `Decode.attend`; keys and values `[blocks, kv_heads, size, D]`."""
        asking = query[0].transpose(0, 1) * scale
        heads, width = asking.shape[1:]
        entries = self._range * keys.shape[1]
        keys, values = (stored[: self._range].view(entries, self._size, width) for stored in (keys, values))
        to_rows, to_blocks = self._order(heads)
        asked = asking.index_select(0, self._owner).view(entries, -1, width)
        scores = torch.bmm(asked, keys.transpose(1, 2)).view(-1, self._size).index_select(0, to_rows)
        scores = scores.view(self.rows, heads, -1).add_(self._mask(window))
        weights = scores.softmax(-1).view(-1, self._size).index_select(0, to_blocks)
        sums = torch.bmm(weights.view(entries, -1, self._size), values).view(self._range, -1)
        parts = sums.index_select(0, self._table)
        if self._most > 1:
            parts = parts.view(self.rows, self._most, -1)
            if self._padding is not None:
                # What stands there is of other rows, which may be no number.
                parts = parts.masked_fill_(self._padding, 0.0)
            parts = parts.sum(1)
        return parts.view(self.rows, heads, width)

    def _order(self, heads: int) -> tuple[Tensor, Tensor]:
        """Which block's head each (row, head, place) is, and the reverse."""
        if heads not in self._orders:
            each = torch.arange(heads, device=self._table.device)[:, None]
            to_rows = self._table.view(self.rows, 1, self._most) * heads + each
            to_blocks = (self._owner * heads * self._most + self._owned % self._most)[:, None] + each[:, 0] * self._most
            self._orders[heads] = to_rows.view(-1), to_blocks.view(-1)
        return self._orders[heads]

    def _mask(self, window: int | None) -> Tensor:
        """What to add to the scores of each row, `[B, 1, M * size]`: 0, and minus infinity where it does not see."""
        if window not in self._masks:
            hidden = self._places >= self._ends
            if window is not None:
                hidden |= self._places < self._ends - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask[:, None]
        return self._masks[window]


class KernelDecode:
    """Attention by a kernel that follows the rows' tables. `width`: blocks that the table has room for."""

    def __init__(self, cache: PagedCache, tables: Sequence[Table], ends: Sequence[int], width: int = 0) -> None:
        assert cache.shape.kernels is not None, f"no kernels for {cache.shape}"
        self._kernels = cache.shape.kernels
        self.rows = len(tables)
        self.table = padded_tables(tables, width).to(cache.shape.device, non_blocking=True)
        self.ends = torch.tensor(ends, dtype=torch.int32).to(cache.shape.device, non_blocking=True)

    def advance(self) -> None:
        """Go on to the next step of the same rows."""
        self.ends += 1

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention as of `Decode.attend`, by the kernel."""
        return self._kernels.attend(
            query[0].transpose(0, 1), keys, values, self.table, self.ends, scale, window or 2**30
        )


def padded_tables(tables: Sequence[Table], width: int = 0) -> Tensor:
    """The rows' blocks as kernels take them, int32 `[B, M]`; room for `width` at least."""
    width = max(width, *(len(table.blocks) for table in tables))
    return torch.tensor([[*table.blocks, *[0] * (width - len(table.blocks))] for table in tables], dtype=torch.int32)


def make_decode(cache: PagedCache, tables: Sequence[Table], ends: Sequence[int]) -> Decode:
    """Rows with these tables, each of which has its new token at the end."""
    if cache.shape.kernels is not None:
        return KernelDecode(cache, tables, ends)
    return SingleDecode(cache, tables[0], ends[0]) if len(tables) == 1 else DenseDecode(cache, tables, ends)
