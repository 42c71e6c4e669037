"""The engine: one step is schedule -> run -> postprocess. Token ids and tensors only, no HTTP, no text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from time import monotonic

import torch
from torch import Tensor

from models.backbone import Backbone, OutOfRows
from models.sampling import GrammarError, Logprobs, sample
from server.engine.scheduler import NoRoom, Scheduler, Work
from server.request import EngineFailed, Event, Finish, GrammarFailed, Request, RequestFailed
from steering.guard import Guard
from steering.policy import Decision, Mode, Verdict, decide
from steering.shadow import Shadow

logger = logging.getLogger(__name__)


@dataclass
class Computed:
    """What a pass found: requests, the hidden states `[B, d]` of their last tokens, and the tapped states of these."""

    requests: list[Request]
    hidden: Tensor
    tapped: Tensor | None

    def of(self, kept: Sequence[bool]) -> Computed:
        """That of some of the requests."""
        if all(kept):
            return self
        places = torch.tensor([*compress(range(len(kept)), kept)], dtype=torch.long, device=self.hidden.device)
        tapped = None if self.tapped is None else self.tapped[places]
        return Computed(list(compress(self.requests, kept)), self.hidden[places], tapped)

    @staticmethod
    def joined(parts: Sequence[Computed]) -> Computed:
        """Those of passes one after the other, all of which were tapped, or none."""
        tapped = [part.tapped for part in parts if part.tapped is not None]
        assert len(tapped) in (0, len(parts)), f"{len(tapped)} of {len(parts)} passes were tapped"
        return Computed(
            [request for part in parts for request in part.requests],
            torch.cat([part.hidden for part in parts]),
            torch.cat(tapped) if tapped else None,
        )


class Engine:
    """Continuous batching of a guarded backbone. Not thread-safe: one thread owns it."""

    def __init__(
        self, backbone: Backbone, guard: Guard | None, scheduler: Scheduler, shadow: Shadow | None = None
    ) -> None:
        assert shadow is None or guard is not None, "a shadow needs a guard to stand beside"
        self.backbone = backbone
        self.guard = guard
        self.shadow = shadow
        self.scheduler = scheduler
        self.failure: EngineFailed | None = None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute what is scheduled; the events of the step, a token for each row that was ready for one.

        `failure` is set when a batch and then all of its rows alone fail: nothing can be served any more.
        """
        began = monotonic()
        plan = self.scheduler.schedule(self)
        events = [self._fail(request, error) for request, error in plan.refused]
        # Decided for the whole step: where its rows are run one by one, all of them are tapped or none.
        tapping = self.guard is not None and any(r.decision is None and r.pending == n for r, n in plan.work)
        computed = self._run(plan.work, events, tapping=tapping)
        if computed is None:
            return events
        computed = self._judged(computed.of([request.pending == 0 for request in computed.requests]), events)
        if computed.requests:
            logits = self.backbone.logits(self._steer(computed.requests, computed.hidden))
            tokens, logprobs = sample(logits, [request.sampler for request in computed.requests])
            events.extend(
                self._advance(request, token, logprobs.get(row))
                for row, (request, token) in enumerate(zip(computed.requests, tokens, strict=True))
            )
        prompt_tokens = plan.prompt_tokens
        streaming = sum(count == 1 for _, count in plan.work)
        self.scheduler.budget.observe(monotonic() - began, streaming, prompt_tokens)
        return events

    def abort(self, request_id: str) -> Event | None:
        """End a request now and free its row; `None` if it has already ended."""
        request = self.scheduler.find(request_id)
        return None if request is None else self._end(request, Finish.ABORT)

    def fail_all(self, error: EngineFailed) -> list[Event]:
        """End every live request with the engine's failure."""
        return [self._end(request, Finish.ERROR, error) for request in self.scheduler.live()]

    # memory, for the scheduler ---------------------------------------------------------------------------------

    def open(self, request: Request) -> None:
        """Give a request its row. Raises NoRoom while there is none, OutOfRows where there never will be."""
        if self.scheduler.running and not self.backbone.has_room(len(request.prompt.ids) + len(request.output_ids)):
            raise NoRoom
        try:
            request.row = self.backbone.open_row(request.prompt, request.max_tokens, request.output_ids)
        except OutOfRows as error:
            if self.scheduler.running:
                raise NoRoom from error
            raise
        finally:
            if request.timings.scheduled is None:
                request.timings.scheduled = monotonic()
        if request.cached_tokens is None:
            request.cached_tokens = request.row.length

    def chunk(self, request: Request, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""
        assert request.row is not None, f"request {request.id} runs without a row"
        return self.backbone.chunk(request.row, count)

    def reserve(self, request: Request, count: int) -> bool:
        """Make sure of room for a request's next tokens; False if there is none."""
        assert request.row is not None, f"request {request.id} runs without a row"
        try:
            self.backbone.reserve(request.row, count)
        except OutOfRows:
            return False
        return True

    def release(self, request: Request) -> None:
        """Take a request's row back."""
        if request.row is not None:
            self.backbone.close_row(request.row)
            request.row = None

    # run -------------------------------------------------------------------------------------------------------

    def _run(self, work: Sequence[Work], events: list[Event], *, tapping: bool) -> Computed | None:
        """One batched pass; where it raises, each row alone, so that one bad request fails by itself."""
        if not work:
            return None
        try:
            return self._forward(work, tapping=tapping)
        except torch.AcceleratorError:
            raise  # after an error of the device itself, nothing that it computes can be trusted
        except Exception as error:  # noqa: BLE001  any other failure of a model's forward is contained here
            if len(work) == 1:
                events.append(self._fail(work[0].request, error))
                return None
            logger.warning("a batch of %d rows failed, running them one by one: %s", len(work), error)
        alone = [computed for each in work if (computed := self._run([each], events, tapping=tapping)) is not None]
        if alone:
            return Computed.joined(alone)
        self.failure = EngineFailed(f"every row of a batch of {len(work)} failed")
        return None

    def _forward(self, work: Sequence[Work], *, tapping: bool) -> Computed:
        requests = [request for request, _ in work]
        rows = [request.row for request in requests if request.row is not None]
        counts = [count for _, count in work]
        if self.guard is None or not tapping:
            return Computed(requests, self.backbone.forward(rows, counts), None)
        with self.backbone.tap(
            self.guard.tapped if self.shadow is None else self.shadow.tapped_with(self.guard)
        ) as tap:
            hidden = self.backbone.forward(rows, counts)
        return Computed(requests, hidden, tap.states)

    # guard -----------------------------------------------------------------------------------------------------

    def _judged(self, computed: Computed, events: list[Event]) -> Computed:
        """Decide on the prompts that are computed now; those that want no token, or get none, end here."""
        new = computed.of([request.decision is None for request in computed.requests])
        if not new.requests:
            return computed
        if self.guard is None:
            self._set_prefilled(new.requests)
            self._set_decisions(new.requests, [Decision(Verdict.PASS, None, 0.0)] * len(new.requests))
        elif self.shadow is None:
            self._judge(self.guard, new.requests, _states(new))
        else:
            own, shadowed = self.shadow.apart(_states(new), self.guard)
            scores = self._judge(self.guard, new.requests, own)
            self._judge_in_shadow(self.shadow, new.requests, scores if self.shadow.guard is self.guard else shadowed)
        ends = {request: end for request in new.requests if (end := _end_of_judged(request)) is not None}
        events.extend(self._end(request, end) for request, end in ends.items())
        return computed.of([request not in ends for request in computed.requests])

    def _judge(self, guard: Guard, requests: Sequence[Request], states: Tensor) -> list[float]:
        """Score every prefilled row and keep its decision on the request; the scores."""
        before = self._set_prefilled(requests)
        policies = [request.policy for request in requests]
        if all(policy.mode is Mode.OFF for policy in policies):
            scores = [0.0] * len(requests)
        else:
            scores = guard.score(states).tolist()
        self._set_decisions(requests, decide(scores, policies))
        for request in requests:
            request.timings.guard_seconds = monotonic() - before
        return scores

    def _judge_in_shadow(self, shadow: Shadow, requests: Sequence[Request], found: list[float] | Tensor) -> None:
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
            request.shadow = (request.leader.shadow if request.leader else None) or own

    def _set_prefilled(self, requests: Sequence[Request]) -> float:
        """The prompts are computed now."""
        now = monotonic()
        for request in requests:
            request.timings.prefilled = now
        return now

    def _set_decisions(self, requests: Sequence[Request], decisions: Sequence[Decision]) -> None:
        for request, own in zip(requests, decisions, strict=True):
            # The choices of one answer are judged once: rounding differs between batches, a verdict must not.
            leading = request.leader.decision if request.leader else None
            request.decision = decision = leading or own
            if decision.verdict is Verdict.STEERED:
                request.sampler = request.sampler.steered()

    def _steer(self, requests: Sequence[Request], hidden: Tensor) -> Tensor:
        eps = [request.eps for request in requests]
        if self.guard is None or not any(eps):
            return hidden
        return self.guard.steer(hidden, torch.tensor(eps, device=hidden.device, dtype=hidden.dtype))

    # postprocess -----------------------------------------------------------------------------------------------

    def _advance(self, request: Request, token: int, logprobs: Logprobs | None) -> Event:
        """Give a request its token, and end it where it ends."""
        if request.timings.first_token is None:
            request.timings.first_token = monotonic()
        ends = token in self.backbone.info.eos_ids
        try:
            if ends:
                request.sampler.finish()
            else:
                request.sampler.observe(token)
        except GrammarError as error:
            return self._end(request, Finish.ERROR, GrammarFailed(str(error)))
        steered = request.eps != 0
        if ends:
            return self._end(request, Finish.CONTENT_FILTER if steered else Finish.STOP)
        request.output_ids.append(token)
        if request.row is not None:
            request.row.append(token)
        if len(request.output_ids) < request.max_tokens:
            return Event(request, token=token, logprobs=logprobs)
        return self._end(request, Finish.CONTENT_FILTER if steered else Finish.LENGTH, token=token, logprobs=logprobs)

    def _fail(self, request: Request, cause: Exception) -> Event:
        logger.error("request %s failed: %s: %s", request.id, type(cause).__name__, cause)
        error = RequestFailed(f"{type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return self._end(request, Finish.ERROR, error)

    def _end(
        self,
        request: Request,
        finish: Finish,
        error: RequestFailed | EngineFailed | None = None,
        token: int | None = None,
        logprobs: Logprobs | None = None,
    ) -> Event:
        self.scheduler.finish(request)
        self.release(request)
        request.timings.finished = monotonic()
        return Event(request, token=token, logprobs=logprobs, finish=finish, error=error)


def _states(computed: Computed) -> Tensor:
    """What a guard reads; a prompt is never let through because nothing was read."""
    assert computed.tapped is not None, f"{len(computed.requests)} prompts were computed without a tap"
    return computed.tapped


def _end_of_judged(request: Request) -> Finish | None:
    """Why a row ends with its prompt, if it does."""
    if request.decision is not None and request.decision.verdict is Verdict.BLOCKED:
        return Finish.CONTENT_FILTER
    return Finish.STOP if request.max_tokens == 0 else None
