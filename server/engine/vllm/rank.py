"""vLLM's worker with the guard in its part of the model: in this process, or one in each of several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from vllm import ModelRegistry
from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.vllm.model import RowMap, guarded_model
from server.engine.vllm.worker import Read, Worker, drained
from steering.bundle import load_guard

if TYPE_CHECKING:
    from models.info import BackboneInfo


@dataclass(frozen=True)
class RankSpec:
    """What a rank needs to know, as a part of vLLM's configuration.

    `guard`: the bundle's folder. `threads`: how many it computes with; None: as many as torch takes.
    """

    info: BackboneInfo
    guard: Path | None
    threads: int | None

    def compute_hash(self) -> str:
        """What vLLM adds to the key of compiled code that it keeps."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


class Rank(CPUWorker):  # type: ignore[misc]
    """vLLM's worker for CPUs, whose model is guarded. All ranks steer, the first one reads."""

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:  # noqa: ANN401
        self._spec: RankSpec = vllm_config.additional_config
        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)
        info, folder = self._spec.info, self._spec.guard
        ModelRegistry.register_model(info.architecture, guarded_model(info.family))  # before its runner asks for it
        super().__init__(vllm_config, *args, **options)
        guard = None if folder is None else load_guard(folder, info)
        self._channel: SimpleQueue[Read] = SimpleQueue()
        self._guarded = Worker(guard, info.num_layers, self._channel if self.rank == 0 else None)

    def load_model(self, **options: Any) -> None:  # noqa: ANN401
        """Load this rank's part of the guarded model."""
        if not self.use_v2_model_runner:  # which asks the model itself for what learns of rows
            for each in self.model_runner.input_batch.logitsprocs.all:
                if isinstance(each, RowMap):
                    each.tell(self._guarded)
        super().load_model(**options)
        self.get_model().guard_with(self._guarded)

    # asked by the engine, of all ranks ----------------------------------------------------------------------------

    def take_reads(self) -> list[Read]:
        """What was read since the last call, in order."""
        return drained(self._channel)

    def allow(self, masks: Mapping[str, bytes]) -> None:
        """Take what the grammars of runs allow next: by a run's name, a bit for each token of the vocabulary."""
        self._guarded.masks = masks

    def only_windows(self) -> bool:
        """Whether every layer of the model looks at a window of tokens."""
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        return all(getattr(each, "sliding_window", None) for each in layers)
