"""Steps of decoding as CUDA graphs: one for each number of rows, replayed without a launch by the host.

A graph reads its inputs from buffers of its own and leaves them ready for the next step of the same rows: positions,
slots and lengths go on by one on the device. The host then sends the tokens, and nothing else. A tap that is known when
they are recorded is part of them: its states lie in a buffer of the graph, whether or not somebody reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attention import DecodePass, Pass
from models.blocks import Table
from models.cache import PagedCache
from models.decode import KernelDecode
from models.info import BackboneInfo
from models.rows import Steps
from models.tap import Tap

Forward = Callable[[Tensor, Tensor, Pass, Sequence[Tap]], Tensor]  # ids `[1, B]`, positions -> hidden `[B, d]`


def sizes(most: int) -> list[int]:
    """Numbers of rows that graphs are made for: fine where rows are few, as padding is then much of the step."""
    return sorted({size for size in (1, 2, 4, *range(8, 64, 8), *range(64, most, 32)) if size < most} | {most})


@dataclass
class _Graph:
    """One recorded step and its buffers."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    positions: Tensor
    slots: Tensor
    decode: KernelDecode
    real: Tensor  # 1 for a row, 0 for padding
    hidden: Tensor
    states: Tensor | None  # of the tap
    loaded: Steps | None = None  # whose next step the buffers are ready for


class DecodeGraphs:
    """Graphs for up to `rows` rows."""

    def __init__(
        self,
        cache: PagedCache,
        forward: Forward,
        rows: int,
        info: BackboneInfo,
        mrope: bool,
        tap: Tap | None = None,
    ) -> None:
        self._cache = cache
        self._forward = forward
        self._sizes = sizes(rows)
        self._planes = (3, 1) if mrope else (1,)
        self._device = info.device
        self._width = cache.blocks_for(info.context_length)
        self._tap = tap
        self._graphs: dict[int, _Graph] = {}
        self._tokens = torch.zeros(rows, dtype=torch.long, pin_memory=True)

    def capture(self) -> None:
        """Record all graphs, the largest first, whose memory the others then use."""
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            self._graphs[size] = self._captured(size, pool)

    def read(self, taps: Sequence[Tap]) -> bool:
        """Whether the graphs read for all of these taps."""
        return all(tap is self._tap for tap in taps)

    @torch.inference_mode()
    def step(self, steps: Steps, tokens: Sequence[int]) -> Tensor:
        """The next token of each row -> hidden `[B, d]`, until the next step."""
        count = len(tokens)
        graph = self._graphs[next(size for size in self._sizes if size >= count)]
        if graph.loaded is not steps:
            self._load(graph, steps, count)
        # Written again only after the step before was read, and with it this buffer.
        self._tokens[:count] = torch.tensor(tokens)
        graph.ids[0, :count].copy_(self._tokens[:count], non_blocking=True)
        graph.graph.replay()
        graph.loaded = steps
        if self._tap is not None and graph.states is not None:
            self._tap.put(graph.states[:count])
        return graph.hidden[:count]

    def _load(self, graph: _Graph, steps: Steps, count: int) -> None:
        assert isinstance(steps.decode, KernelDecode), "graphs are made of the kernel's steps"
        for other in self._graphs.values():
            other.loaded = None
        heads = self._cache.shape.kv_heads
        graph.positions[..., :count].copy_(steps.positions)
        graph.positions[..., count:] = 0
        graph.slots[: count * heads].copy_(steps.slots)
        graph.slots[count * heads :] = 0
        graph.decode.table.zero_()
        graph.decode.table[:count, : steps.decode.table.shape[1]].copy_(steps.decode.table)
        graph.decode.ends[:count].copy_(steps.decode.ends)
        graph.decode.ends[count:] = 1
        graph.real[:count] = 1
        graph.real[count:] = 0

    def _captured(self, size: int, pool: Any) -> _Graph:  # noqa: ANN401 - torch has no name for it
        heads = self._cache.shape.kv_heads
        ids = torch.zeros((1, size), dtype=torch.long, device=self._device)
        positions = torch.zeros((*self._planes, size), dtype=torch.long, device=self._device)
        slots = torch.zeros(size * heads, dtype=torch.long, device=self._device)
        decode = KernelDecode(self._cache, [Table(blocks=[0]) for _ in range(size)], [1] * size, self._width)
        real = torch.zeros(size, dtype=torch.int32, device=self._device)
        paged = DecodePass(self._cache, slots, decode)
        taps = [] if self._tap is None else [self._tap]

        def step() -> Tensor:
            hidden = self._forward(ids, positions, paged, taps)
            positions.add_(real)
            slots.add_(real.repeat_interleave(heads, output_size=size * heads))
            decode.ends.add_(real)
            return hidden

        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden = step()
        states = None if self._tap is None else self._tap.states
        return _Graph(graph, ids, positions, slots, decode, real, hidden, states)
