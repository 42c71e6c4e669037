"""vLLM's V2 runner: which request is in which row, and where the tokens of a step belong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.forward_context import get_forward_context
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from server.engine.vllm.worker import Row, Step, row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.worker.gpu.input_batch import InputBatch


class _Request(NamedTuple):
    params: SamplingParams
    prompt_tokens: int


class _Batch(NamedTuple):
    """What is known of a step before it is computed: a `Step` but its slots, which are those of `layer`."""

    ends: Sequence[int]
    lengths: Sequence[int]
    blocks: Tensor
    block_tokens: int
    layer: str


class GuardedState(DefaultModelState):  # type: ignore[misc]
    """What the V2 runner keeps for a guarded model; it asks the model's `get_model_state_cls` for the class.

    Rows are known from before a step is computed until its tokens are sampled: steps that warm up have none.
    """

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:  # noqa: ANN401
        super().__init__(vllm_config, model, encoder_cache, device)
        self._requests: dict[str, _Request] = {}
        self._batch: _Batch | None = None
        model.step = self._step

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        self._requests[new_req_data.req_id] = _Request(new_req_data.sampling_params, new_req_data.prompt_len)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._requests.pop(req_id, None)

    def preprocess_state(
        self,
        input_batch: InputBatch,
        block_tables: tuple[Tensor, ...],
        kv_cache_config: KVCacheConfig,
        num_computed_tokens: Tensor,
    ) -> None:
        """Learn what the next step computes; the runner calls this for real steps alone."""
        super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
        lengths = (input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens).tolist()
        known = zip(input_batch.req_ids, lengths, input_batch.prefill_len_np.tolist(), strict=True)
        self.model.worker.rows = {place: self._row(*each) for place, each in enumerate(known)}
        group, layer = self._whole_layer(kv_cache_config)
        self._batch = _Batch(
            input_batch.query_start_loc_np[1 : input_batch.num_reqs + 1].tolist(),
            lengths,
            block_tables[group],
            kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size,
            layer,
        )

    def postprocess_state(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Forget the step: its tokens are sampled."""
        super().postprocess_state(*args, **options)
        self.model.worker.rows = {}
        self._batch = None

    def _step(self) -> Step | None:
        """Where the tokens of the pass that runs belong; None while vLLM warms up."""
        if (batch := self._batch) is None:
            return None
        slots = get_forward_context().slot_mapping[batch.layer]
        return Step(batch.ends, batch.lengths, slots, batch.blocks, batch.block_tokens)

    def _row(self, name: str, length: int, prefill: int) -> Row:
        """A request's row. What it is given at first are its prompt and, after its row was given up, its answer."""
        params, prompt_tokens = self._requests[name]
        return row_of(params.extra_args, prompt_tokens, range(max(prefill, length) - prompt_tokens))

    def _whole_layer(self, config: KVCacheConfig) -> tuple[int, str]:
        """A layer that does not give blocks back while a row goes on, and its group's number."""
        layers = self.vllm_config.compilation_config.static_forward_context
        return next(
            (number, name)
            for number, group in enumerate(config.kv_cache_groups)
            for name in group.layer_names
            if layers[name].sliding_window is None
        )
