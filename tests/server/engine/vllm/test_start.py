"""What of vLLM's configuration is refused, without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from models.errors import LoadError
from server.engine.vllm.start import _check, _check_ranks


def config(**changes: Any) -> SimpleNamespace:
    """One that is served, with these changes; `a__b` is `b` of its part `a`."""
    made = SimpleNamespace(
        use_v2_model_runner=False,
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, data_parallel_size=1, nnodes=1),
        model_config=SimpleNamespace(quantization=None),
        speculative_config=None,
        scheduler_config=SimpleNamespace(async_scheduling=False),
    )
    for name, value in changes.items():
        *path, last = name.split("__")
        part = made
        for each in path:
            part = getattr(part, each)
        setattr(part, last, value)
    return made


def test_the_v1_runner_on_one_machine_is_served() -> None:
    _check(config())


@pytest.mark.parametrize(("heads", "pairs", "width"), [(8, 4, 512), (8, 1, 512), (4, 2, 64)])
def test_a_decoder_that_can_be_cut_is_shared(heads: int, pairs: int, width: int) -> None:
    _check_ranks(SimpleNamespace(num_attention_heads=heads, num_key_value_heads=pairs, intermediate_size=width), 4)


@pytest.mark.parametrize(("heads", "pairs", "width"), [(6, 3, 512), (8, 3, 512), (8, 4, 510)])
def test_a_decoder_that_cannot_be_cut_is_refused(heads: int, pairs: int, width: int) -> None:
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=pairs, intermediate_size=width)
    with pytest.raises(LoadError, match=f"tensor_parallel: 4 processes cannot share {heads} heads, {pairs} of keys"):
        _check_ranks(text, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_v2_model_runner": True}, "its V2 model runner"),
        ({"parallel_config__pipeline_parallel_size": 2}, "stages of layers"),
        ({"parallel_config__data_parallel_size": 2}, "several copies of the model"),
        ({"parallel_config__nnodes": 2}, "several nodes"),
        ({"model_config__quantization": "awq"}, "quantised weights"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"scheduler_config__async_scheduling": True}, "asynchronous scheduling"),
    ],
)
def test_what_was_not_shown_to_be_right_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LoadError, match=f"not shown to be right with {told}"):
        _check(config(**changes))
