"""Golden prompts: two engines that differ by more than rounding are told apart before anything is served."""

from __future__ import annotations

import math

import pytest
import torch

from models.errors import LoadError
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.engine.vllm.golden import Golden, ask_golden, compare, golden_prompts
from server.engine.vllm.start import check_reader
from steering.readers import Conversation
from tests.server.guards import random_guard
from tests.tiny import TinyModels

FOUND = Golden("golden.plain.0", 0.0, -1.0)


@pytest.mark.parametrize(
    "other",
    [
        Golden("golden.plain.0", 0.06, -1.0),
        Golden("golden.plain.0", math.nan, -1.0),
        Golden("golden.plain.0", None, -1.0),
        Golden("golden.plain.0", 0.0, -1.03),
        Golden("golden.plain.0", 0.0, None),
    ],
)
def test_what_differs_is_refused(other: Golden) -> None:
    compare([FOUND], [FOUND], torch.float32)
    with pytest.raises(LoadError, match=r"golden\.plain\.0"):
        compare([FOUND], [other], torch.float32)


def test_half_precision_may_differ_more() -> None:
    compare([FOUND], [Golden("golden.plain.0", 0.06, -1.03)], torch.bfloat16)


def test_the_same_engine_says_the_same_and_another_guard_something_else(tiny_models: TinyModels) -> None:
    """A layer that is off by one, and a head that does nothing, are seen."""
    backbone = tiny_models.backbone("llama")
    prompts = golden_prompts(backbone.inputs)

    def golden(layer: int, *, bends: bool = True) -> list[Golden]:
        guard = random_guard(backbone.info, layer=layer)
        guard.head.weight.mul_(1.0 if bends else 0.0)
        found = ask_golden(OwnEngine(backbone, guard, Scheduler(2, 100)), prompts, 1.0)
        backbone.read_prompts(None)
        return found

    expected = golden(2)
    assert len(expected) == 2 * len(prompts)
    compare(expected, golden(2), torch.float32)
    with pytest.raises(LoadError, match="the log-odds of the score"):
        compare(expected, golden(1), torch.float32)
    with pytest.raises(LoadError, match="the log-probability of the first token"):
        compare(expected, golden(2, bends=False), torch.float32)


def test_a_bundle_that_reads_the_whole_conversation_is_refused(tiny_models: TinyModels) -> None:
    guard = random_guard(tiny_models.backbone("llama").info)
    check_reader(guard)
    guard.reader = Conversation(4, [])
    with pytest.raises(LoadError, match="the whole conversation"):
        check_reader(guard)
