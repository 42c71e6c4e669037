"""What is decided on prompts that have been computed: the guard's scores, the policies', and a shadow's beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

import torch
from torch import Tensor

from server.engine.own_request import OwnRequest
from server.engine.stopwatch import Stopwatch
from steering.guard import Guard
from steering.policy import Decision, Mode, Verdict, decide
from steering.shadow import Shadow

logger = logging.getLogger(__name__)


class Judge:
    """Decides on requests once, when their prompts are computed. Without a guard everything passes."""

    def __init__(self, guard: Guard | None, shadow: Shadow | None = None) -> None:
        assert shadow is None or guard is not None, "a shadow needs a guard to stand beside"
        self.guard = guard
        self.shadow = shadow

    @property
    def layers(self) -> int | Sequence[int] | None:
        """What it has to read of a prompt; None: nothing."""
        if self.guard is None:
            return None
        return self.guard.tapped if self.shadow is None else self.shadow.tapped_with(self.guard)

    def judge(self, requests: Sequence[OwnRequest], states: Tensor | None) -> None:
        """Decide on requests by the tapped states `[B, ...]` of their prompts' last tokens."""
        if self.guard is None:
            self._set_prefilled(requests, monotonic())
            self._set_decisions(requests, [Decision(Verdict.PASS, None, 0.0)] * len(requests))
            return
        # A prompt is never let through because nothing was read.
        assert states is not None, f"{len(requests)} prompts were computed without a tap"
        if self.shadow is None:
            self._act(self.guard, requests, states)
            return
        own, shadowed = self.shadow.apart(states, self.guard)
        scores = self._act(self.guard, requests, own)
        self._watch(self.shadow, requests, scores if self.shadow.guard is self.guard else shadowed)

    def follow(self, request: OwnRequest, follower: OwnRequest) -> None:
        """Decide on a request as on that which has computed its prompt: rounding differs, a verdict must not."""
        follower.shadow = request.shadow
        if request.decision is not None:
            self._decide(follower, request.decision)

    def steer(self, requests: Sequence[OwnRequest], hidden: Tensor) -> Tensor:
        """Hidden states `[B, d]`, bent for the requests that are steered."""
        eps = [request.eps for request in requests]
        if self.guard is None or not any(eps):
            return hidden
        return self.guard.steer(hidden, torch.tensor(eps, device=hidden.device, dtype=hidden.dtype))

    def _act(self, guard: Guard, requests: Sequence[OwnRequest], states: Tensor) -> list[float]:
        """Score every prompt and keep the decisions; the scores."""
        watch = Stopwatch(states.device)  # from where the prompts are computed, which on a GPU is still to come
        policies = [request.policy for request in requests]
        if all(policy.mode is Mode.OFF for policy in policies):
            scores = [0.0] * len(requests)
        else:
            scores = guard.score(states).tolist()
        seconds = watch.stop()
        self._set_prefilled(requests, monotonic() - seconds)
        self._set_decisions(requests, decide(scores, policies))
        for request in requests:
            request.timings.guard_seconds = seconds
        return scores

    def _watch(self, shadow: Shadow, requests: Sequence[OwnRequest], found: list[float] | Tensor) -> None:
        """Keep what the shadow would have decided, from the acting scores or states of its own; it fails by itself."""
        modes = [request.policy.mode for request in requests]
        if all(mode is Mode.OFF for mode in modes):
            return
        try:
            scores = found if isinstance(found, list) else shadow.guard.score(found).tolist()
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.exception("the shadow %s failed on a batch of %d rows", shadow.name, len(requests))
            return
        for request, own in zip(requests, shadow.judge(scores, modes), strict=True):
            request.shadow = own

    def _set_prefilled(self, requests: Sequence[OwnRequest], at: float) -> None:
        """The prompts were computed then."""
        for request in requests:
            request.timings.prefilled = at

    def _set_decisions(self, requests: Sequence[OwnRequest], decisions: Sequence[Decision]) -> None:
        for request, decision in zip(requests, decisions, strict=True):
            self._decide(request, decision)

    def _decide(self, request: OwnRequest, decision: Decision) -> None:
        request.decision = decision
        if decision.verdict is Verdict.STEERED:
            request.sampler = request.sampler.steered()
