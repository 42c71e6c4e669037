"""The adapter of vLLM's V2 runner against the wheel's own classes; with that runner: `-p tests.vllm.v2_runner`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from server.engine.vllm.worker import Row, Worker
from tests.tiny import make_tiny
from tests.vllm.models import TEXT

pytestmark = pytest.mark.vllm
WINDOW, WHOLE = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"
CPU = torch.device("cpu")
BLOCK = 16


class Model:
    """What the state asks of a guarded model."""

    def __init__(self) -> None:
        from server.engine.vllm.model import guarded_model

        self.worker = Worker(None, 2, None)
        self.get_model_state_cls = lambda: guarded_model("llama").get_model_state_cls(self)
        self.step: Any = None


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """vLLM's configuration, with a layer that looks at a window of tokens before one that looks at all."""
    from vllm import EngineArgs

    model = make_tiny("llama", tmp_path_factory.mktemp("llama"), text=TEXT)
    made = EngineArgs(model=str(model), dtype="float32", enforce_eager=True).create_engine_config()
    made.compilation_config.static_forward_context = {
        WINDOW: SimpleNamespace(sliding_window=8),
        WHOLE: SimpleNamespace(sliding_window=None),
    }
    return made


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def state(config: Any, model: Model) -> Any:
    """As the runner makes it."""
    from vllm.v1.worker.gpu.model_states import init_model_state

    return init_model_state(config, model, None, CPU)


@pytest.fixture(scope="module")
def cache() -> Any:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

    shape = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 32, "dtype": torch.float32}
    groups = [
        KVCacheGroupSpec([WINDOW], SlidingWindowSpec(**shape, sliding_window=8)),
        KVCacheGroupSpec([WHOLE], FullAttentionSpec(**shape)),
    ]
    return KVCacheConfig(num_blocks=9, kv_cache_tensors=[], kv_cache_groups=groups)


class Turn(NamedTuple):
    """A request in a step: how many of its tokens are computed before it, and with it; what it was given at first."""

    name: str
    before: int
    after: int
    given: int


def asked(name: str, prompt: int, *said: int, eps: float = 0.0, watched: bool = False) -> Any:
    """A request as the scheduler tells a runner of it; `said`: tokens of its answer, if its row was given up."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    extra = {"autosteer_run": f"run of {name}", "autosteer_eps": eps, "autosteer_watched": watched}
    ids = [*range(prompt)]
    params = SamplingParams(extra_args=extra)
    return NewRequestData(name, ids, [], params, None, ([],), 0, None, prefill_token_ids=[*ids, *said])


def batch(*turns: Turn) -> Any:
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    counts = np.array([turn.after - turn.before for turn in turns], dtype=np.int32)
    made = InputBatch.make_dummy(len(turns), int(counts.sum()), InputBuffers(8, 64, CPU))
    return replace(
        made,
        req_ids=[turn.name for turn in turns],
        num_scheduled_tokens=counts,
        query_start_loc_np=np.array([0, *np.cumsum(counts)], dtype=np.int32),
        num_computed_tokens_np=np.array([turn.before for turn in turns], dtype=np.int32),
        prefill_len_np=np.array([turn.given for turn in turns], dtype=np.int32),
    )


def begin(state: Any, cache: Any, *turns: Turn) -> tuple[torch.Tensor, ...]:
    """Have the state learn of a step, as the runner does before it computes; the blocks of each group's rows."""
    tables = tuple(torch.arange(8).reshape(2, 4) + 10 * group for group in range(2))
    state.preprocess_state(batch(*turns), tables, cache, torch.empty(0))
    return tables


@pytest.fixture
def computing(config: Any) -> Iterator[torch.Tensor]:
    """Within a pass; where its tokens are put in the cache of the layer that looks at all."""
    from vllm.forward_context import set_forward_context

    slots = torch.arange(6)
    with set_forward_context(None, config, slot_mapping={WINDOW: slots + 100, WHOLE: slots}):
        yield slots


def said(rows: dict[int, Row]) -> Sequence[int]:
    """How many tokens of its answer each row has."""
    return [len(rows[place].output) for place in sorted(rows)]


def test_the_runner_takes_the_state_of_the_guarded_model(state: Any) -> None:
    from server.engine.vllm.runner_v2 import GuardedState

    assert type(state) is GuardedState


def test_rows_are_the_requests_of_a_step_in_its_order(state: Any, model: Model, cache: Any) -> None:
    state.add_request(5, asked("plain", 3))
    state.add_request(2, asked("bent", 4, eps=1.5, watched=True))
    begin(state, cache, Turn("bent", 0, 4, 4), Turn("plain", 0, 3, 3))
    assert model.worker.rows == {
        0: Row("run of bent", 1.5, watched=True, prompt_tokens=4, output=range(0)),
        1: Row("run of plain", 0.0, watched=False, prompt_tokens=3, output=range(0)),
    }


def test_a_row_has_an_answer_from_its_first_token_on(state: Any, model: Model, cache: Any) -> None:
    """Not within its prompt; with a token of it computed; when its row was given up, at once."""
    for each in (asked("chunk", 6), asked("last chunk", 6), asked("answers", 3), asked("again", 3, 7, 7)):
        state.add_request(0, each)
    begin(state, cache, Turn("chunk", 0, 4, 6), Turn("last chunk", 4, 6, 6))
    assert said(model.worker.rows) == [0, 0]
    begin(state, cache, Turn("answers", 4, 5, 3), Turn("again", 0, 2, 5))
    assert said(model.worker.rows) == [2, 2]
    begin(state, cache, Turn("again", 2, 5, 5), Turn("answers", 5, 6, 3))
    assert said(model.worker.rows) == [2, 3]


def test_a_step_is_told_of_the_layer_that_looks_at_all(
    state: Any, model: Model, cache: Any, computing: torch.Tensor
) -> None:
    state.add_request(0, asked("one", 6))
    state.add_request(1, asked("other", 3))
    _, blocks = begin(state, cache, Turn("one", 2, 6, 6), Turn("other", 1, 3, 3))
    step = model.step()
    assert (step.ends, step.lengths, step.block_tokens) == ([4, 6], [6, 3], BLOCK)
    assert step.blocks.equal(blocks)
    assert step.slots.equal(computing)


def test_outside_of_real_steps_there_are_no_rows(state: Any, model: Model, cache: Any, computing: torch.Tensor) -> None:
    """vLLM warms up by passes of which it tells nothing."""
    assert model.step() is None
    state.add_request(0, asked("one", 6))
    begin(state, cache, Turn("one", 0, 6, 6))
    assert model.step() is not None
    state.postprocess_state(torch.tensor([0]), torch.tensor([1]), torch.empty(0))
    assert model.step() is None
    assert model.worker.rows == {}


def test_a_request_that_has_ended_is_forgotten(state: Any, model: Model, cache: Any) -> None:
    state.add_request(0, asked("one", 6, eps=1.0))
    state.remove_request("one")
    with pytest.raises(KeyError):
        begin(state, cache, Turn("one", 0, 6, 6))
    state.add_request(0, asked("one", 4))
    begin(state, cache, Turn("one", 0, 4, 4))
    assert model.worker.rows[0].eps == 0.0
    state.remove_request("never asked")
