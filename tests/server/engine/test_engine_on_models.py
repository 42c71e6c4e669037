"""The engine over real (tiny, random) models of every family: what the guard may change, and what it must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.row_sampler import RowSampler, SamplingParams
from models.sampling import Sample, sample
from server.engine.own import OwnEngine
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Ask
from steering.guard import Guard
from steering.policy import Mode, Policy, Verdict
from steering.shadow import Shadow
from tests.server.fakes import own
from tests.server.guards import random_guard
from tests.tiny import CHATS, chats_of, pictures

TOLERANCE = 1e-4
TOKENS = 12


class Recorder:
    """Keeps the logits that each request's tokens were chosen from."""

    def __init__(self, engine: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[str, list[Tensor]] = {}
        self._names: list[str] = []

        def keep(logits: Tensor, samplers: Sequence[RowSampler]) -> Sample:
            for row, sampler in zip(logits, samplers, strict=True):
                name = next(r.id for r in engine.scheduler.live() if r.sampler is sampler)
                self.logits.setdefault(name, []).append(row.clone())
            return sample(logits, samplers)

        monkeypatch.setattr("server.engine.own.sample", keep)


def chat_request(
    backbone: Backbone, name: str, policy: Policy, *, row: str | None = None, **sampling: Any
) -> OwnRequest:
    messages = chats_of(backbone.info.family)[name]
    prompt = backbone.inputs.build(messages, pictures(messages))
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return own(Ask(row or name, prompt, params, TOKENS, policy))


def serve(
    backbone: Backbone,
    guard: Guard | None,
    monkeypatch: pytest.MonkeyPatch,
    arrivals: Sequence[tuple[int, OwnRequest]],
    shadow: Shadow | None = None,
) -> dict[str, Tensor]:
    """Run requests that arrive at given steps; their logits `[T, V]`."""
    engine = OwnEngine(backbone, guard, Scheduler(max_running=8, prefill_tokens=100_000), shadow)
    with monkeypatch.context() as patch:
        recorder = Recorder(engine, patch)
        waiting = sorted(arrivals, key=lambda arrival: arrival[0])
        for step in range(200):
            while waiting and waiting[0][0] <= step:
                engine.add(waiting.pop(0)[1])
            engine.step()
            if not waiting and engine.idle:
                break
    assert engine.idle
    assert backbone.open_rows == 0
    return {name: torch.stack(rows) for name, rows in recorder.logits.items()}


def policy(mode: Mode, *, flag: bool = True, eps: float = 1.0) -> Policy:
    return Policy("default", mode, 0.0 if flag else 1.0, eps, "I can't help with that.")


@pytest.fixture
def guard(backbone: Backbone) -> Guard:
    return random_guard(backbone.info)


def test_a_mixed_batch_gives_each_row_what_it_gets_alone(
    backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Lengths, images, sampling and policies side by side, rows joining and leaving between steps."""

    def requests() -> list[tuple[int, OwnRequest]]:
        names = list(CHATS)
        modes = [policy(Mode.STEER), policy(Mode.STEER, flag=False), policy(Mode.MONITOR), policy(Mode.OFF)]
        sampling: list[dict[str, Any]] = [
            {},
            {"temperature": 0.7, "seed": 3, "top_p": 0.9},
            {"repetition_penalty": 1.2},
        ]
        return [
            (step, chat_request(backbone, names[i % len(names)], modes[i % 4], row=str(i), **sampling[i % 3]))
            for i, step in enumerate([0, 0, 0, 2, 2, 5, 7])
        ]

    together_requests = requests()
    together = serve(backbone, guard, monkeypatch, together_requests)
    worst = 0.0
    for (_, alone_request), (_, mixed_request) in zip(requests(), together_requests, strict=True):
        alone = serve(backbone, guard, monkeypatch, [(0, alone_request)])[alone_request.id]
        assert mixed_request.output_ids == alone_request.output_ids
        worst = max(worst, float((together[alone_request.id] - alone).abs().max()))
    print(f"\n{backbone.info.family}: mixed batch against each row alone, logits differ by at most {worst:.1e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize(
    "watched", [policy(Mode.MONITOR), policy(Mode.STEER, flag=False)], ids=["monitor", "unflagged"]
)
def test_a_guard_that_does_not_act_changes_no_bit(
    watched: Policy, backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = serve(backbone, None, monkeypatch, [(0, chat_request(backbone, n, policy(Mode.OFF))) for n in CHATS])
    guarded = [(0, chat_request(backbone, name, watched)) for name in CHATS]
    logits = serve(backbone, guard, monkeypatch, guarded)
    for _, r in guarded:
        assert r.decision is not None
        assert r.decision.verdict in (Verdict.MONITORED, Verdict.PASS)
        assert torch.equal(logits[r.id], plain[r.id])


@pytest.mark.parametrize("bundle", ["another", "acting"])
def test_a_shadow_changes_no_token_and_no_bit(
    bundle: str, backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = random_guard(backbone.info, seed=1, layer=1) if bundle == "another" else guard
    shadow = Shadow("candidate", own, threshold=0.0)

    def requests() -> list[tuple[int, OwnRequest]]:
        modes = [policy(Mode.STEER), policy(Mode.STEER, flag=False), policy(Mode.MONITOR), policy(Mode.OFF)]
        return [(i, chat_request(backbone, name, modes[i % 4], row=str(i))) for i, name in enumerate(list(CHATS) * 2)]

    without, beside = requests(), requests()
    plain = serve(backbone, guard, monkeypatch, without)
    shadowed = serve(backbone, guard, monkeypatch, beside, shadow)
    for (_, alone), (_, watched) in zip(without, beside, strict=True):
        assert watched.output_ids == alone.output_ids
        assert watched.decision == alone.decision
        assert torch.equal(shadowed[watched.id], plain[watched.id])
        assert alone.shadow is None
        if watched.policy.mode is Mode.OFF:
            assert watched.shadow is None
            continue
        assert watched.shadow is not None
        assert watched.decision is not None
        assert watched.shadow.verdict is Verdict.MONITORED
        assert (watched.shadow.score == watched.decision.score) == (bundle == "acting")


def test_a_shadow_scores_as_it_would_if_it_acted(
    backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = random_guard(backbone.info, seed=1, layer=1)
    beside, acting = ([(0, chat_request(backbone, name, policy(Mode.MONITOR))) for name in CHATS] for _ in range(2))
    serve(backbone, guard, monkeypatch, beside, Shadow("candidate", own, 0.5))
    serve(backbone, own, monkeypatch, acting)
    for (_, watched), (_, judged) in zip(beside, acting, strict=True):
        assert watched.shadow is not None
        assert judged.decision is not None
        assert watched.shadow.score == judged.decision.score


@pytest.mark.parametrize("failing", ["read", "score"])
def test_a_shadow_that_fails_is_no_failure_of_the_request(
    backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    own = random_guard(backbone.info, seed=1)
    monkeypatch.setattr(own.reader, failing, lambda *_: 1 / 0)
    watched = chat_request(backbone, next(iter(CHATS)), policy(Mode.MONITOR))
    serve(backbone, guard, monkeypatch, [(0, watched)], Shadow("candidate", own, 0.5))
    assert watched.output_ids
    assert watched.decision is not None
    assert watched.shadow is None


def test_eps_zero_changes_no_bit_and_a_steered_row_no_other(
    backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(CHATS)
    plain = serve(backbone, guard, monkeypatch, [(0, chat_request(backbone, n, policy(Mode.MONITOR))) for n in names])
    mixed = [
        (0, chat_request(backbone, n, policy(Mode.STEER if i == 0 else Mode.MONITOR, eps=5.0)))
        for i, n in enumerate(names)
    ]
    steered = serve(backbone, guard, monkeypatch, mixed)
    for name in names[1:]:
        assert torch.equal(steered[name], plain[name])
    assert not torch.equal(steered[names[0]][0], plain[names[0]][0])

    hidden = torch.randn(4, backbone.info.hidden_size)
    eps = torch.tensor([0.0, 1.0, 0.0, -2.0])
    bent = guard.steer(hidden, eps)
    assert torch.equal(bent[eps == 0], hidden[eps == 0])
    assert torch.equal(backbone.logits(bent)[eps == 0], backbone.logits(hidden)[eps == 0])
    assert not torch.equal(bent[eps != 0], hidden[eps != 0])


def test_a_row_that_is_aborted_between_steps_leaves_the_others_as_they_are(
    backbone: Backbone, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = list(CHATS)[:2]
    alone = chat_request(backbone, second, policy(Mode.MONITOR))
    serve(backbone, guard, monkeypatch, [(0, alone)])
    engine = OwnEngine(backbone, guard, Scheduler(max_running=8, prefill_tokens=100_000))
    gone, stays = (chat_request(backbone, name, policy(Mode.MONITOR)) for name in (first, second))
    for request in (gone, stays):
        engine.add(request)
    engine.step()
    assert engine.abort(gone.id) is not None
    assert backbone.open_rows == 1
    while not engine.idle:
        engine.step()
    assert engine.failure is None
    assert stays.output_ids == alone.output_ids
