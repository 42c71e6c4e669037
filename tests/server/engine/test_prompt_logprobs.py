"""Log-probabilities of a prompt's own tokens, against the model asked for each of them by itself."""

from __future__ import annotations

import pytest
import torch

from models.backbone import Backbone
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Ask
from steering.policy import Mode, Policy, Verdict
from tests.server.guards import random_guard
from tests.tiny import TinyModels

COUNT = 70  # tokens: more than a block, so that a prefix would be known
TOP = 3


def policy(mode: Mode) -> Policy:
    return Policy("default", mode, 0.0, 1.0, "I can't help with that.")


def run(engine: OwnEngine, prompts: list[list[int]], mode: Mode = Mode.OFF, tokens: int = 0) -> list[OwnRequest]:
    params = SamplingParams(temperature=0.0)
    asks = [
        Ask(str(number), Prompt(ids, {}, 0), params, tokens, policy(mode), prompt_logprobs=TOP)
        for number, ids in enumerate(prompts)
    ]
    requests = engine.prepare(asks)
    for request in requests:
        engine.add(request)
    for _ in range(500):
        if engine.idle:
            return requests
        engine.step()
    raise AssertionError("it does not end")


@pytest.fixture
def prompts(backbone: Backbone) -> list[list[int]]:
    image = backbone.inputs.image_token_id
    ordinary = [token for token in range(5, backbone.info.vocab_size) if token != image]
    return [
        [ordinary[(7 * place + 3 * number) % len(ordinary)] for place in range(COUNT - 9 * number)]
        for number in range(3)
    ]


def expected(backbone: Backbone, ids: list[int], place: int, eps: float = 0.0) -> torch.Tensor:
    """Of each token at `place`, by a row that ends before it."""
    row = backbone.open_row(Prompt(ids[:place], {}, 0), 1)
    hidden = backbone.prefill([row])
    backbone.close_row(row)
    if eps:
        hidden = random_guard(backbone.info).steer(hidden, torch.tensor([eps]))
    return backbone.logits(hidden).float().log_softmax(-1)[0]


@pytest.mark.parametrize("budget", [1000, 16], ids=["whole", "in chunks"])
def test_they_are_the_model_s_for_each_token(backbone: Backbone, prompts: list[list[int]], budget: int) -> None:
    engine = OwnEngine(backbone, None, Scheduler(4, budget))
    for ids, request in zip(prompts, run(engine, prompts, tokens=1), strict=True):
        found = request.prompt_logprobs
        assert found is not None
        assert len(found) == len(ids) - 1
        for place in (1, 16, 17, len(ids) - 1):
            wanted = expected(backbone, ids, place)
            assert found[place - 1].token == pytest.approx(float(wanted[ids[place]]), abs=1e-4)
            values = [log for _, log in found[place - 1].top]
            assert values == pytest.approx(wanted.topk(TOP).values.tolist(), abs=1e-4)


def test_of_a_steered_prompt_they_are_the_steered_model_s_and_of_a_blocked_one_there_are_none(
    backbone: Backbone, prompts: list[list[int]]
) -> None:
    engine = OwnEngine(backbone, random_guard(backbone.info), Scheduler(4, 1000))
    [ids, *_] = prompts
    [steered] = run(engine, [ids], Mode.STEER)
    assert steered.decision is not None
    assert steered.decision.verdict is Verdict.STEERED
    assert steered.prompt_logprobs is not None
    for place in (1, len(ids) - 1):
        wanted = float(expected(backbone, ids, place, steered.decision.eps)[ids[place]])
        assert steered.prompt_logprobs[place - 1].token == pytest.approx(wanted, abs=1e-4)
    [watched] = run(engine, [ids], Mode.MONITOR)
    assert watched.prompt_logprobs is not None
    assert watched.prompt_logprobs[3].token == pytest.approx(float(expected(backbone, ids, 4)[ids[4]]), abs=1e-4)
    [blocked] = run(engine, [ids], Mode.BLOCK)
    assert blocked.prompt_logprobs is None


def test_what_the_cache_knows_of_a_prompt_is_computed_again(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llama", remembers=True)
    backbone.forget()
    engine = OwnEngine(backbone, None, Scheduler(4, 1000))
    ids = [5 + place % 40 for place in range(COUNT)]
    first, second = (run(engine, [ids])[0].prompt_logprobs for _ in range(2))
    assert first is not None
    assert second is not None
    assert [each.token for each in second] == pytest.approx([each.token for each in first], abs=1e-5)


def test_a_row_that_is_taken_back_keeps_nothing_of_what_it_had_computed(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llama")
    engine = OwnEngine(backbone, None, Scheduler(4, 16))
    ids = [5 + place % 40 for place in range(COUNT)]
    [whole] = run(engine, [ids])
    [request] = engine.prepare(
        [Ask("again", Prompt(ids, {}, 0), SamplingParams(), 0, policy(Mode.OFF), prompt_logprobs=TOP)]
    )
    engine.add(request)
    engine.step()
    engine.scheduler._preempt(request, engine._rows)
    while not engine.idle:
        engine.step()
    assert whole.prompt_logprobs is not None
    assert request.prompt_logprobs is not None
    assert [each.token for each in request.prompt_logprobs] == pytest.approx(
        [each.token for each in whole.prompt_logprobs], abs=1e-4
    )
