"""The paged KV cache: storage for all rows in blocks, each row's table of them, and what a pass writes where.

Layout, per layer, keys and values: `[blocks, kv_heads, BLOCK, head_dim]`. Only this module and the attention over it
know that. Nothing of a row is anywhere but in its blocks: closing it forgets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.blocks import BlockPool, OutOfBlocks, Table
from models.memory import machine_memory
from models.operations import ChunkKernels, Kernels, chunk_kernels, kernels

__all__ = ["CacheShape", "OutOfBlocks", "PagedCache", "Table"]


BLOCK = 64  # tokens: smaller ones cost more products, larger ones more room that is not used
CACHE_LINE = 64  # bytes of a CPU's


@dataclass(frozen=True)
class CacheShape:
    """What the cache of a model looks like."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    group: int = 1  # heads of queries that share a head of keys and values

    @property
    def kernels(self) -> Kernels | None:
        """What computes over it; None where plain torch does."""
        return kernels(self.device.type, self.dtype, self.head_dim)

    @property
    def chunk_kernels(self) -> ChunkKernels | None:
        """What computes attention of chunks over it; None where plain torch does."""
        return chunk_kernels(self.device.type, self.dtype, self.head_dim, self.group)

    @property
    def dense(self) -> bool:
        """Whether what rows hold is read as one view (`models.blocks`): where no kernel follows their tables."""
        return self.kernels is None

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, all layers, keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BLOCK * self.dtype.itemsize


class PagedCache:
    """Storage of `blocks` blocks. `keep`: whether prompts' blocks stay for later prompts that begin alike."""

    def __init__(self, shape: CacheShape, blocks: int, *, keep: bool) -> None:
        self.shape = shape
        self.block_size = BLOCK
        self.dense = shape.dense
        # An ordinary tensor, written to inside and outside of inference mode. Zeros: what is masked still meets a
        # weight of 0, where 0 * NaN is NaN.
        with torch.inference_mode(mode=False):
            sizes = (shape.layers, 2, blocks + 1, shape.kv_heads, BLOCK, shape.head_dim)
            self._storage = _zeros(sizes, shape.dtype, shape.device)
        self.layers = [(layer[0], layer[1]) for layer in self._storage]
        self.flat = [(layer[0].view(-1, shape.head_dim), layer[1].view(-1, shape.head_dim)) for layer in self._storage]
        self.pool = BlockPool(blocks, self._move, dense=self.dense, keep=keep)
        self.tables: list[Table] = []
        self._closed = False  # a row, since its blocks were last looked at
        self._notes: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of open rows."""
        return len(self.tables)

    @property
    def usage(self) -> float:
        """Share of the blocks that rows hold."""
        return self.pool.held / self.pool.count

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens of a row take."""
        return -(-tokens // self.block_size)

    def slots(self, table: Table, start: int, end: int) -> list[int]:
        """Where a row's tokens from `start` to `end` are stored: block times block size, and the place within."""
        size, blocks = self.block_size, table.blocks
        return [blocks[at // size] * size + at % size for at in range(start, end)]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store `[1, kv_heads, N, D]` at slots `[N, kv_heads]`, see `targets`."""
        for stored, states in zip(self.flat[layer], (keys, values), strict=True):
            new = states[0].transpose(0, 1).reshape(-1, self.shape.head_dim)
            stored.index_copy_(0, slots, new)

    def targets(self, slots: Sequence[int]) -> Tensor:
        """Slots as `write` takes them: the place of each token's every head. The next token's is 1 more."""
        found = torch.tensor(slots)[:, None]
        places = (found // BLOCK * self.shape.kv_heads + torch.arange(self.shape.kv_heads)) * BLOCK + found % BLOCK
        return places.view(-1).to(self.shape.device)

    def keep_notes(self, width: int | None) -> None:
        """Keep `width` numbers with each token from now on, or none; blocks without them are forgotten.

        A token's numbers are NaN until they are noted.
        """
        self.pool.forget_all()
        self._notes = None
        if width is not None:
            with torch.inference_mode(mode=False):
                shape = (self.pool.count + 1, BLOCK, width)
                self._notes = torch.full(shape, torch.nan, dtype=torch.float32, device=self.shape.device)

    def note(self, slots: Sequence[int], values: Tensor) -> None:
        """Keep values `[N, width]` with the tokens at these slots, see `slots`."""
        assert self._notes is not None, "the cache keeps no notes"
        places = torch.tensor(slots, device=self._notes.device)
        self._notes.view(-1, self._notes.shape[-1]).index_copy_(0, places, values.to(self._notes))

    def noted(self, table: Table, tokens: int) -> Tensor:
        """What was noted of a row's first tokens, `[tokens, width]`."""
        assert self._notes is not None, "the cache keeps no notes"
        blocks = torch.tensor(table.blocks[: self.blocks_for(tokens)], device=self._notes.device)
        return self._notes.index_select(0, blocks).flatten(0, 1)[:tokens]

    def row(self, layer: int, table: Table, tokens: int) -> tuple[Tensor, Tensor]:
        """Copies of a row's first keys and values in order, `[kv_heads, tokens, D]` each."""
        blocks = torch.tensor(table.blocks[: self.blocks_for(tokens)], device=self.shape.device)
        keys, values = (
            stored.index_select(0, blocks).transpose(0, 1).reshape(self.shape.kv_heads, -1, self.shape.head_dim)
            for stored in self.layers[layer]
        )
        return keys[:, :tokens], values[:, :tokens]

    def open(self, keys: Sequence[bytes], use: int) -> Table:
        """A row that begins with the blocks of the first `use` keys. Raises OutOfBlocks."""
        table = self.pool.open(keys, use)
        self.tables.append(table)
        return table

    def copy(self, source: Table, tokens: int) -> Table:
        """A row that begins with the first `tokens` of another. Raises OutOfBlocks."""
        full, rest = divmod(tokens, self.block_size)
        table = self.pool.copy(source, full, int(rest > 0))
        self.tables.append(table)
        return table

    def shrink(self, table: Table, tokens: int) -> None:
        """Take back the blocks of a row that its first `tokens` do not need."""
        self._closed = True
        self.pool.shrink(table, self.blocks_for(tokens))

    def reserve(self, table: Table, tokens: int) -> None:
        """Let a row have room for `tokens` in all. Raises OutOfBlocks, and changes nothing."""
        blocks = self.blocks_for(tokens)
        if blocks > len(table.blocks):
            before = len(table.blocks)
            self.pool.extend(table, blocks)
            if self._notes is not None:
                self._notes[table.blocks[before:]] = torch.nan
            if self.dense:
                self._storage[:, :, table.blocks[-1]] = 0  # it is read before it is full

    def close(self, table: Table) -> None:
        """Free a row's blocks."""
        self.tables.remove(table)
        self._closed = True
        self.pool.close(table)

    def compact(self) -> bool:
        """Bring what rows hold together where it has come apart, so that a pass over it meets few other blocks."""
        if not self.dense or not self._closed:
            return False
        self._closed = False
        highest = max((block for table in self.tables for block in table.blocks), default=0)
        if highest <= self.pool.held + self.pool.held // 3 + 8:
            return False
        self.pool.compact(self.tables)
        return True

    def _move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        if sources:
            self._storage[:, :, list(targets)] = self._storage[:, :, list(sources)]
            if self._notes is not None:
                self._notes[list(targets)] = self._notes[list(sources)]


def _zeros(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in memory that is not taken before it is used, where torch would write all of it."""
    if device.type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    count = math.prod(sizes) * dtype.itemsize
    memory = np.zeros(count + CACHE_LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % CACHE_LINE
    return torch.from_numpy(memory[begin : begin + count]).view(dtype).view(sizes)


def cache_room(device: torch.device) -> int:
    """Bytes that a cache may take where nobody says how many: a quarter of the machine's memory, most of a GPU's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * 17 // 20
    return machine_memory() // 4
