"""Categories over real (tiny, random) models: a prompt's are the same however it was computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.backbone import Backbone
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Ask
from steering.policy import Decision, Mode, Policy, Verdict
from tests.server.guards import random_categories, random_conversation, random_guard

STEER = Policy("default", Mode.STEER, 0.0, 1.0, "No.", categories=(("fraud", Mode.BLOCK),))


def decisions(engine: OwnEngine, asks: Sequence[Ask], *, preempt: bool = False) -> list[Decision]:
    """What is decided on each; `preempt`: the first that runs gives up its row after a step."""
    requests = engine.prepare(asks)
    for request in requests:
        engine.add(request)
    for step in range(200):
        if engine.idle:
            break
        if preempt and step == 1:
            engine.scheduler._preempt(next(iter(engine.scheduler.running.values())), engine._rows)
        engine.step()
    assert engine.idle
    assert engine.scheduler.preemptions == preempt
    return [request.decision for request in requests if request.decision is not None]


def prompts_of(backbone: Backbone) -> list[Prompt]:
    """A long one, a short one, and a chat in which a tool and, where the template can, a system message tell."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {}}}
    user: dict[str, Any] = {"role": "user", "content": "How many circles are there?"}
    chat = [
        *([{"role": "system", "content": "You answer briefly."}] if backbone.info.family == "llama" else []),
        user,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "A red square lies left of a blue circle. " * 3},
    ]
    texts = ("A red square lies left of a blue circle. " * n for n in (14, 1))
    prompts = [*map(backbone.inputs.build_text, texts), backbone.inputs.build(chat, [])]
    assert [bool(backbone.inputs.layout(prompt.ids).told) for prompt in prompts] == [False, False, True]
    return prompts


@pytest.mark.parametrize("family", ["gemma3", "llama"], indirect=True)
def test_a_prompt_has_the_same_score_and_categories_however_it_was_computed(
    remembering: Backbone,
) -> None:
    """Alone, beside others, in chunks, after it gave up its row, as one of several choices, and where it is known."""
    guard = random_conversation(remembering.info)
    asks = [
        Ask(f"{n}-{choice}", prompt, SamplingParams.GREEDY, 2, STEER, leader=f"{n}-0" if choice else None)
        for n, prompt in enumerate(prompts_of(remembering))
        for choice in (0, 1)
    ]
    alone = []
    for ask in asks:
        remembering.forget()
        alone += decisions(OwnEngine(remembering, guard, Scheduler(8, 10_000)), [replace(ask, leader=None)])
    assert len({each.score for found in alone for each in found.categories}) == 6
    assert len({found.score for found in alone}) == 3
    remembering.forget()
    beside = decisions(OwnEngine(remembering, guard, Scheduler(8, 10_000)), asks)
    remembering.forget()
    chunked = OwnEngine(remembering, guard, Scheduler(8, 20))
    ways = [beside, *(decisions(chunked, asks) for _ in range(2))]  # the second time much of it is known
    remembering.forget()
    ways.append(decisions(OwnEngine(remembering, guard, Scheduler(8, 20)), asks, preempt=True))
    worst = 0.0
    for found, expected in ((found, alone[at]) for way in ways for at, found in enumerate(way)):
        assert [each.name for each in found.categories] == ["weapons", "fraud"]
        scores = [(found.score, expected.score)]
        scores += [(a.score, b.score) for a, b in zip(found.categories, expected.categories, strict=True)]
        worst = max([worst, *(abs(one - other) for one, other in scores if one is not None and other is not None)])
        assert found.kinds == expected.kinds
        assert found.verdict is (Verdict.BLOCKED if "fraud" in found.kinds else Verdict.STEERED)
    print(f"\n{remembering.info.family}: scores differ by at most {worst:.1e}")
    assert worst <= 1e-4


def test_a_policy_that_is_off_has_none(backbone: Backbone) -> None:
    guard = random_guard(backbone.info, categories=random_categories(backbone.info))
    prompt = backbone.inputs.build_text("A red square.")
    off = Policy("default", Mode.OFF, 0.5, 1.0, "No.")
    asks = [Ask(name, prompt, SamplingParams.GREEDY, 1, each) for name, each in (("off", off), ("on", STEER))]
    unscored, scored = decisions(OwnEngine(backbone, guard, Scheduler(8, 100)), asks)
    assert unscored.categories == ()
    assert len(scored.categories) == 2
