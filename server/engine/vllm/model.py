"""vLLM's side of the worker: its model classes with the guard in them, and its V1 runner's rows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from server.engine.vllm.worker import Row, Worker

# In the `extra_args` of a run's sampling parameters.
RUN = "autosteer_run"
EPS = "autosteer_eps"

# Families that were shown to be right, by the model type of their config: vLLM's module and class.
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "llava_onevision": ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
}


def guarded_model(family: str, worker: Worker) -> type[Any]:
    """The class of a family in vLLM, with the guard where hidden states become logits.

    That is eager Python on exactly the sampled rows, outside of graphs and compiled code; hooks are not.
    """
    module, name = FAMILIES[family]
    base: Any = getattr(import_module(f"vllm.model_executor.models.{module}"), name)

    class Guarded(base):  # type: ignore[misc]
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: ANN401
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            decoder = self.language_model.model if hasattr(self, "language_model") else self.model
            decoder._set_aux_hidden_state_layers(worker.extra_layers)

        def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            output = super().forward(*args, **kwargs)
            if isinstance(output, tuple):  # side by side, so that the runner takes the sampled rows of all
                output = torch.cat((output[0], *output[1]), dim=-1)
            return output

        def compute_logits(self, hidden_states: Tensor) -> Any:  # noqa: ANN401
            return super().compute_logits(worker.guarded(hidden_states))

    Guarded.__name__ = Guarded.__qualname__ = name
    return Guarded


def row_map(worker: Worker) -> type[LogitsProcessor]:
    """A logits processor that changes no logits: the V1 runner tells it which request is in which row."""

    class RowMap(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, *_: Any) -> None:  # noqa: ANN401
            worker.rows.clear()

        def apply(self, logits: Tensor) -> Tensor:
            return logits

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            if batch_update is not None:
                _follow(worker.rows, batch_update)

    return RowMap


def _follow(rows: dict[int, Row], update: BatchUpdate) -> None:
    """Removed, added, moved: in this order, as vLLM says."""
    for place in update.removed:
        rows.pop(place, None)
    for place, params, _, output in update.added:
        extra = params.extra_args or {}
        rows[place] = Row(extra.get(RUN, ""), extra.get(EPS, 0.0), output)
    for one, other, direction in update.moved:
        moved = rows.pop(one, None)
        if direction is MoveDirectionality.SWAP and other in rows:
            rows[one] = rows.pop(other)
        if moved is not None:
            rows[other] = moved
