"""Categories over real (tiny, random) models: a prompt's are the same however it was computed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.backbone import Backbone
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Ask
from steering.policy import Decision, Mode, Policy, Verdict
from tests.server.guards import random_categories, random_guard

STEER = Policy("default", Mode.STEER, 0.0, 1.0, "No.", categories=(("fraud", Mode.BLOCK),))


def decisions(engine: OwnEngine, asks: Sequence[Ask]) -> list[Decision]:
    requests = engine.prepare(asks)
    for request in requests:
        engine.add(request)
    for _ in range(100):
        if engine.idle:
            break
        engine.step()
    assert engine.idle
    return [request.decision for request in requests if request.decision is not None]


@pytest.mark.parametrize("family", ["gemma3", "llama"], indirect=True)
def test_a_prompt_has_the_same_categories_however_it_was_computed(remembering: Backbone) -> None:
    """At once, in chunks, as one of several choices, and of a prompt that is known."""
    guard = random_guard(remembering.info, categories=random_categories(remembering.info))
    prompts = [remembering.inputs.build_text("A red square lies left of a blue circle. " * n) for n in (14, 1)]
    asks = [
        Ask(f"{n}-{choice}", prompt, SamplingParams.GREEDY, 2, STEER, leader=f"{n}-0" if choice else None)
        for n, prompt in enumerate(prompts)
        for choice in (0, 1)
    ]
    remembering.forget()
    at_once = decisions(OwnEngine(remembering, guard, Scheduler(8, 10_000)), asks)
    assert len({each.score for found in at_once for each in found.categories}) == 4
    remembering.forget()
    engine = OwnEngine(remembering, guard, Scheduler(8, 20))
    for _ in range(2):  # the second time much of it is known
        for found, expected in zip(decisions(engine, asks), at_once, strict=True):
            assert [each.name for each in found.categories] == ["weapons", "fraud"]
            for one, other in zip(found.categories, expected.categories, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
            assert found.kinds == expected.kinds
            assert found.verdict is (Verdict.BLOCKED if "fraud" in found.kinds else Verdict.STEERED)


def test_a_policy_that_is_off_has_none(backbone: Backbone) -> None:
    guard = random_guard(backbone.info, categories=random_categories(backbone.info))
    prompt = backbone.inputs.build_text("A red square.")
    off = Policy("default", Mode.OFF, 0.5, 1.0, "No.")
    asks = [Ask(name, prompt, SamplingParams.GREEDY, 1, each) for name, each in (("off", off), ("on", STEER))]
    unscored, scored = decisions(OwnEngine(backbone, guard, Scheduler(8, 100)), asks)
    assert unscored.categories == ()
    assert len(scored.categories) == 2
