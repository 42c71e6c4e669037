"""Golden prompts: two engines that differ by more than rounding are told apart before anything is served."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.errors import LoadError
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.engine.vllm.golden import Golden, ask_golden, compare, golden_prompts
from tests.server.guards import random_answers, random_guard
from tests.tiny import TinyModels

FOUND = Golden("golden.plain.0", 0.0, -1.0, 0.5)


@pytest.mark.parametrize(
    "other",
    [
        replace(FOUND, odds=0.04),  # a score of .51 in place of .5
        replace(FOUND, odds=math.nan),
        replace(FOUND, odds=None),
        replace(FOUND, logprob=-1.03),
        replace(FOUND, logprob=None),
        replace(FOUND, answer=0.56),
        replace(FOUND, answer=None),
    ],
)
def test_what_differs_is_refused(other: Golden) -> None:
    compare([FOUND], [FOUND], torch.float32)
    with pytest.raises(LoadError, match=r"golden\.plain\.0"):
        compare([FOUND], [other], torch.float32)


def test_half_precision_may_differ_more() -> None:
    compare([FOUND], [replace(FOUND, odds=0.06, logprob=-1.03, answer=0.56)], torch.bfloat16)


def test_the_same_engine_says_the_same_and_another_guard_something_else(tiny_models: TinyModels) -> None:
    """A layer that is off by one, and a head that does nothing, are seen."""
    backbone = tiny_models.backbone("llama")
    prompts = golden_prompts(backbone.inputs)

    def golden(layer: int, answers: tuple[int, ...] = (1, 3), *, bends: bool = True) -> list[Golden]:
        guard = random_guard(backbone.info, layer=layer, answers=random_answers(backbone.info, answers))
        guard.head.weight.mul_(1.0 if bends else 0.0)
        found = ask_golden(OwnEngine(backbone, guard, Scheduler(2, 100)), prompts)
        backbone.read_prompts(None)
        backbone.watch_answers(None)
        return found

    expected = golden(2)
    assert len(expected) == 2 * len(prompts)
    compare(expected, golden(2), torch.float32)
    with pytest.raises(LoadError, match="the log-odds of the score"):
        compare(expected, golden(1), torch.float32)
    with pytest.raises(LoadError, match="at the first token"):
        compare(expected, golden(2, (1, 2)), torch.float32)
    with pytest.raises(LoadError, match="the log-probability of the first token"):
        compare(expected, golden(2, bends=False), torch.float32)
