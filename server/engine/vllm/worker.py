"""The guard inside vLLM's worker: it reads prompts and bends rows, and decides nothing. Knows tensors, not vLLM."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from steering.guard import Guard

if TYPE_CHECKING:
    from queue import SimpleQueue

logger = logging.getLogger(__name__)


class Read(NamedTuple):
    """What was read of the last token that a run has computed so far, `[1, width]`.

    `seconds`: what reading all rows of its step took; on a GPU, to launch it.
    """

    run: str
    notes: Tensor
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of vLLM's batch. `output`: its tokens so far, the runner's own list, which grows."""

    run: str
    eps: float
    output: Sequence[int]


class Worker:
    """What the guard does with each step's rows.

    `rows` is kept by the runner's adapter, and empty while vLLM warms up. What is read is put into `channel`: of every
    row without an answer, also where only a part of its prompt is computed. What counts is what came last before its
    first token.
    """

    def __init__(self, guard: Guard | None, depth: int, channel: SimpleQueue[Read]) -> None:
        self.rows: dict[int, Row] = {}
        self._guard = guard
        self._depth = depth
        self._channel = channel

    @property
    def extra_layers(self) -> tuple[int, ...]:
        """The layers whose states the decoder gives beside its output, which is the last layer's; ascending."""
        return () if self._guard is None else tuple(sorted({*self._guard.layers} - {self._depth}))

    @torch.inference_mode()
    def guarded(self, states: Tensor) -> Tensor:
        """Hidden states `[B, d]` for the head, of sampled rows `[B, (1 + extra layers) d]`: read, and bent."""
        hidden, *extra = states.tensor_split(1 + len(self.extra_layers), dim=-1)
        if self._guard is None or not self.rows:
            return hidden
        if len(self.rows) != len(hidden):
            raise RuntimeError(f"vLLM computes {len(hidden)} rows, and its adapter knows {len(self.rows)}")
        rows = [self.rows[place] for place in range(len(hidden))]
        self._read(self._guard, rows, hidden, extra)
        eps = [row.eps for row in rows]
        if not any(eps):
            return hidden
        return self._guard.steer(hidden, torch.tensor(eps, device=hidden.device, dtype=hidden.dtype))

    def _read(self, guard: Guard, rows: Sequence[Row], hidden: Tensor, extra: Sequence[Tensor]) -> None:
        new = [place for place, row in enumerate(rows) if not row.output]
        if not new:
            return
        by_layer = {**dict(zip(self.extra_layers, extra, strict=True)), self._depth: hidden}
        began = perf_counter()
        states = torch.stack([by_layer[layer][new] for layer in guard.layers], dim=1)
        try:
            notes = guard.read(states).cpu()
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.exception("%d prompts could not be read", len(new))
            notes = torch.full((len(new), guard.width), torch.nan)  # which is flagged
        seconds = perf_counter() - began
        for place, note in zip(new, notes, strict=True):
            self._channel.put(Read(rows[place].run, note[None], seconds))
