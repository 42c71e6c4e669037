"""Attention of chunks of prompts by kernels that follow the rows' tables: nothing is gathered, masked or repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.cache import PagedCache, Table
from models.decode import padded_tables
from models.operations import ChunkKernels

PART = 256  # queries that one thread computes at once, each head of a token counted


class Chunks:
    """The chunks of one pass, whose tokens stand in it one after the other from `first` on.

    `ends`: tokens that each row has after the pass, `counts` of which are new.
    """

    def __init__(
        self,
        kernels: ChunkKernels,
        cache: PagedCache,
        tables: Sequence[Table],
        ends: Sequence[int],
        counts: Sequence[int],
        first: int,
    ) -> None:
        self._kernels = kernels
        self._table = padded_tables(tables)
        self._ends = torch.tensor(ends, dtype=torch.int32)
        parts = [*_parts(counts, first, max(1, PART // cache.shape.group))]
        self._parts = torch.tensor(parts, dtype=torch.int32)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """Query `[1, H, N, D]`, a layer's storage -> `[N, H, D]`, of which only the chunks' tokens are computed."""
        asking = query[0].transpose(0, 1)
        return self._kernels.attend_chunks(
            asking, keys, values, self._table, self._ends, self._parts, scale, window or 2**30
        )


def _parts(counts: Sequence[int], first: int, most: int) -> Iterator[tuple[int, int, int, int]]:
    """Row, first token, how many tokens, and how many the row has until its last, of each part."""
    for row, count in enumerate(counts):
        for done in range(0, count, most):
            yield row, first + done, min(most, count - done), count - done
        first += count
