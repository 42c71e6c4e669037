"""What is decided on prompts that have been computed: the guard's scores, the policies', and a shadow's beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Generic, TypeVar

import torch
from torch import Tensor

from models.layout import Layout
from models.reading import PromptReader
from server.engine.judged import JudgedRequest
from server.engine.stopwatch import Stopwatch
from steering.guard import Guard
from steering.policy import Decision, Mode, ShadowDecision, Verdict, decide
from steering.shadow import Beside, Shadow

logger = logging.getLogger(__name__)


R = TypeVar("R", bound=JudgedRequest)
Read = Callable[[R], tuple[Tensor, Layout]]  # what was read of a request's prompt, and how that is laid out


class Judge(Generic[R]):
    """Decides on requests once, when their prompts are computed. Without a guard everything passes."""

    def __init__(self, guard: Guard | None, shadow: Shadow | None = None) -> None:
        assert shadow is None or guard is not None, "a shadow needs a guard to stand beside"
        self.guard = guard
        self.shadow = shadow
        self._beside = None if guard is None or shadow is None or shadow.guard is guard else Beside(guard, shadow.guard)

    @property
    def reader(self) -> PromptReader | None:
        """What is to be read of prompts; None: nothing."""
        return self._beside or self.guard

    def judge(self, requests: Sequence[R], read: Read[R], spent: float) -> None:
        """Decide on requests whose prompts are computed. `spent`: seconds that reading them took in this step."""
        if self.guard is None:
            self._set_prefilled(requests, monotonic())
            self._set_decisions(requests, [Decision(Verdict.PASS, None, 0.0)] * len(requests))
            return
        scored = [request for request in requests if request.policy.mode is not Mode.OFF]
        found = {request: read(request) for request in scored}
        watch = Stopwatch(found[scored[0]][0].device) if scored else None
        own = {request: (self._own(notes), layout) for request, (notes, layout) in found.items()}
        scores = {request: self.guard.score(*read) for request, read in own.items()}
        categories = {request: self.guard.categorise(*read) for request, read in own.items()}
        seconds = 0.0 if watch is None else spent + watch.stop()
        self._set_prefilled(requests, monotonic() - seconds)
        policies = [request.policy for request in requests]
        told = [categories.get(request, ()) for request in requests]
        self._set_decisions(requests, decide([scores.get(request, 0.0) for request in requests], policies, told))
        for request in requests:
            request.timings.guard_seconds = seconds
        for request, read_of in own.items():
            if request.ask.scores:
                request.token_scores = self.guard.token_scores(*read_of)
        if self.shadow is not None:
            self._watch(self.shadow, found, scores)

    def _own(self, notes: Tensor) -> Tensor:
        """What the acting guard has read, without the shadow's numbers."""
        return notes if self._beside is None else self._beside.apart(notes)[0]

    def follow(self, request: R, follower: R) -> None:
        """Decide on a request as on that which has computed its prompt: rounding differs, a verdict must not."""
        if request.decision is not None:
            self._decide(follower, request.decision)
        if request.shadow is not None:
            self._set_shadow(follower, request.shadow)

    def steer(self, eps: Sequence[float], hidden: Tensor) -> Tensor:
        """Hidden states `[B, d]`, bent for the rows that are steered, by `eps`."""
        if self.guard is None or not any(eps):
            return hidden
        return self.guard.steer(hidden, torch.tensor(eps, device=hidden.device, dtype=hidden.dtype))

    def _watch(
        self,
        shadow: Shadow,
        found: Mapping[R, tuple[Tensor, Layout]],
        scores: Mapping[R, float],
    ) -> None:
        """Keep what the shadow would have decided, from the acting scores or its own; it fails by itself."""
        if self._beside is not None:
            try:
                own = {request: (self._beside.apart(notes)[1], layout) for request, (notes, layout) in found.items()}
                # What it could not read it does not judge, which the log has told.
                scores = {at: shadow.guard.score(*read) for at, read in own.items() if read[0].isfinite().all()}
            except torch.AcceleratorError:
                raise
            except Exception:
                logger.exception("the shadow %s failed on a batch of %d rows", shadow.name, len(found))
                return
        for request, score in scores.items():
            self._set_shadow(request, shadow.judge(score))

    def _set_shadow(self, request: R, decision: ShadowDecision) -> None:
        """Keep what the shadow would decide; it watches the answer, unless that is a refusal already."""
        request.shadow = decision
        reader = None if self.shadow is None else self.shadow.answers
        acted = request.decision is not None and request.decision.verdict in (Verdict.STEERED, Verdict.BLOCKED)
        if reader is not None and decision.score is not None and not acted:
            request.shadow_watch = reader.watch(decision.score)

    def _set_prefilled(self, requests: Sequence[R], at: float) -> None:
        """The prompts were computed then."""
        for request in requests:
            request.timings.prefilled = at

    def _set_decisions(self, requests: Sequence[R], decisions: Sequence[Decision]) -> None:
        for request, decision in zip(requests, decisions, strict=True):
            self._decide(request, decision)

    def _decide(self, request: R, decision: Decision) -> None:
        request.decision = decision
        if decision.verdict is Verdict.STEERED:
            request.be_refused()
        if self.guard is not None and request.policy.output.mode is not Mode.OFF:
            assert self.guard.answers is not None, "a policy watches answers, and the bundle has no reader of them"
            assert decision.score is not None, "a policy watches answers, and their prompt was not scored"
            request.watch = self.guard.answers.watch(decision.score)
