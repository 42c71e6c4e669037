"""vLLM's side of the worker: its model classes with the guard in them, and its V1 runner's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from server.engine.vllm.worker import Row, Step, Worker, row_of


class Kind(NamedTuple):
    """A family in vLLM: its module and class. `blocks`: its states are taken from the decoder's blocks one by one."""

    module: str
    name: str
    blocks: bool = False


# Families that were shown to be right, by the model type of their config. vLLM has Gemma's decoder tell no states, and
# Qwen3-VL's only with what the tower adds to them after a block.
FAMILIES = {
    "llama": Kind("llama", "LlamaForCausalLM"),
    "mistral": Kind("mistral", "MistralForCausalLM"),
    "qwen2": Kind("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Kind("qwen3", "Qwen3ForCausalLM"),
    "gemma3_text": Kind("gemma3", "Gemma3ForCausalLM", blocks=True),
    "llava": Kind("llava", "LlavaForConditionalGeneration"),
    "llava_next": Kind("llava_next", "LlavaNextForConditionalGeneration"),
    "llava_onevision": Kind("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    "qwen2_vl": Kind("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": Kind("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": Kind("qwen3_vl", "Qwen3VLForConditionalGeneration", blocks=True),
    "idefics3": Kind("idefics3", "Idefics3ForConditionalGeneration"),
    "smolvlm": Kind("smolvlm", "SmolVLMForConditionalGeneration"),
    "internvl": Kind("interns1", "InternS1ForConditionalGeneration"),
}


def guarded_model(family: str) -> type[Any]:
    """The class of a family in vLLM, with the guard around its decoder and before its head.

    Both are eager Python, outside of compiled code; hooks are not. vLLM keeps a model's class as long as its process
    lives, so that the class knows no worker: each model is told its own before its first pass.
    """
    kind = FAMILIES[family]
    base: Any = getattr(import_module(f"vllm.model_executor.models.{kind.module}"), kind.name)

    class Guarded(base):  # type: ignore[misc]
        worker: Worker
        step: Callable[[], Step | None]  # where the tokens of the pass that runs belong; None while vLLM warms up
        _tap: BlockTap | None = None

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: ANN401
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.step = partial(_step, vllm_config.cache_config)

        def get_model_state_cls(self) -> type[Any]:
            """What the V2 runner asks for, and V1 does not; there the state tells of each step."""
            from server.engine.vllm.runner_v2 import GuardedState

            return GuardedState

        def guard_with(self, worker: Worker) -> None:
            """Have this worker read and steer."""
            self.worker = worker
            decoder = _decoder(self)
            if kind.blocks:
                self._tap = BlockTap(decoder.layers, worker.extra_layers)
            else:
                decoder._set_aux_hidden_state_layers(worker.extra_layers)

        def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            output = super().forward(*args, **kwargs)
            hidden, extra = output if isinstance(output, tuple) else (output, ())
            if self._tap is not None:
                extra = self._tap.take()
            if (step := self.step()) is not None:
                self.worker.read(hidden, extra, step)
            return hidden

        def compute_logits(self, hidden_states: Tensor) -> Any:  # noqa: ANN401
            """Logits of the rows, bent and as their grammars allow; None on a rank that samples nothing."""
            logits = super().compute_logits(self.worker.steer(hidden_states))
            return None if logits is None else self.worker.constrain(logits)

    Guarded.__name__ = Guarded.__qualname__ = kind.name
    return Guarded


def _decoder(model: Any) -> Any:  # noqa: ANN401
    """The stack of blocks in a model of vLLM's."""
    if hasattr(model, "language_model"):
        return model.language_model.model
    return getattr(model.model, "text_model", model.model)


class BlockTap:
    """Takes states from a decoder's blocks, `layers` ascending, as `models/tap.py` defines them; eager Python alone."""

    def __init__(self, blocks: Sequence[Any], layers: Sequence[int]) -> None:
        self._layers = layers
        self._found: dict[int, Tensor] = {}
        for layer in layers:
            block = blocks[max(0, layer - 1)]
            block.forward = self._keeping(block.forward, layer)

    def take(self) -> list[Tensor]:
        """The states of the pass that has run."""
        return [self._found.pop(layer) for layer in self._layers]

    def _keeping(
        self, forward: Callable[..., tuple[Tensor, Tensor]], layer: int
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """A block's forward, of positions, states and what is to be added to them, that keeps the layer's states."""

        def kept(positions: Tensor, hidden: Tensor, residual: Tensor | None, **more: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
            if layer == 0:
                self._found[0] = hidden.clone()
            hidden, residual = forward(positions, hidden, residual, **more)
            if layer > 0:
                self._found[layer] = hidden + residual
            return hidden, residual

        return kept


def _step(cache: Any) -> Step | None:  # noqa: ANN401
    """Where the V1 runner has put the tokens of the pass that runs; None while vLLM warms up."""
    context = get_forward_context()
    if not context.attn_metadata:
        return None
    # Layers that look at a window of tokens give blocks back that the others keep.
    name = next(each for each in context.attn_metadata if context.no_compile_layers[each].sliding_window is None)
    found = context.attn_metadata[name]
    ends, lengths = found.query_start_loc.tolist()[1:], found.seq_lens.tolist()
    return Step(ends, lengths, found.slot_mapping, found.block_table, cache.block_size)


class RowMap(LogitsProcessor):  # type: ignore[misc]
    """A logits processor that changes none: the V1 runner tells it which request is in which row."""

    def __init__(self, *_: Any) -> None:  # noqa: ANN401
        self._worker: Worker | None = None

    def tell(self, worker: Worker) -> None:
        """Keep this worker's rows from now on."""
        self._worker = worker

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if self._worker is not None and batch_update is not None:
            _follow(self._worker.rows, batch_update)


def _follow(rows: dict[int, Row], update: BatchUpdate) -> None:
    """Removed, added, moved: in this order, as vLLM says."""
    for place in update.removed:
        rows.pop(place, None)
    for place, params, prompt, output in update.added:
        rows[place] = row_of(params.extra_args, len(prompt or ()), output)
    for one, other, direction in update.moved:
        moved = rows.pop(one, None)
        if direction is MoveDirectionality.SWAP and other in rows:
            rows[one] = rows.pop(other)
        if moved is not None:
            rows[other] = moved
