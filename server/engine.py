"""The engine: one step is schedule -> run -> postprocess. Token ids and tensors only, no HTTP, no text."""

import logging
from collections.abc import Callable, Sequence
from itertools import compress
from time import monotonic

import torch
from torch import Tensor

from models.backbone import Backbone, OutOfRows
from models.sampling import GrammarError, Logprobs, sample
from server.request import EngineFailed, Event, Finish, GrammarFailed, Request, RequestFailed
from server.scheduler import Scheduler
from steering.guard import Guard
from steering.policy import Decision, Mode, Verdict, decide
from steering.shadow import Shadow

logger = logging.getLogger(__name__)

Computed = tuple[list[Request], list[Tensor]]  # rows that came through; their hidden states, to be joined to [B, d]


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
        """Advance every scheduled request by one token; the events of the step, in row order.

        `failure` is set when a batch and then all of its rows alone fail: nothing can be served any more.
        """
        plan = self.scheduler.schedule()
        events: list[Event] = []
        started, first = self._drop_judged(*self._run(self._prefill, self._open(plan.prefill, events), events), events)
        running, following = self._run(self._decode, plan.decode, events)
        requests = started + running
        if requests:
            logits = self.backbone.logits(self._steer(requests, torch.cat(first + following)))
            tokens, logprobs = sample(logits, [request.sampler for request in requests])
            events.extend(
                self._advance(request, token, logprobs.get(row))
                for row, (request, token) in enumerate(zip(requests, tokens, strict=True))
            )
        return events

    def abort(self, request_id: str) -> Event | None:
        """End a request now and free its row; `None` if it has already ended."""
        request = self.scheduler.find(request_id)
        return None if request is None else self._end(request, Finish.ABORT)

    def fail_all(self, error: EngineFailed) -> list[Event]:
        """End every live request with the engine's failure."""
        return [self._end(request, Finish.ERROR, error) for request in self.scheduler.live()]

    # run -------------------------------------------------------------------------------------------------------

    def _open(self, requests: Sequence[Request], events: list[Event]) -> list[Request]:
        """Reserve storage for the rows admitted in this step; those that find none wait on."""
        opened: list[Request] = []
        deferred: list[Request] = []
        occupied = any(request.row is not None for request in self.scheduler.running.values())
        for request in requests:
            request.timings.scheduled = monotonic()
            try:
                request.row = self.backbone.open_row(request.prompt, request.max_tokens)
                opened.append(request)
            except OutOfRows as error:
                if occupied or opened:
                    deferred.append(request)
                else:
                    events.append(self._fail(request, error))
        self.scheduler.defer(deferred)
        return opened

    def _run(
        self, forward: Callable[[Sequence[Request]], Tensor], requests: list[Request], events: list[Event]
    ) -> Computed:
        """One batched forward; where it raises, each row alone, so that one bad request fails by itself."""
        if not requests:
            return [], []
        try:
            return requests, [forward(requests)]
        except torch.AcceleratorError:
            raise  # after an error of the device itself, nothing that it computes can be trusted
        except Exception as error:  # noqa: BLE001  any other failure of a model's forward is contained here
            if len(requests) == 1:
                events.append(self._fail(requests[0], error))
                return [], []
            logger.warning("a batch of %d rows failed, running them one by one: %s", len(requests), error)
        alone = [(request, self._run(forward, [request], events)[1]) for request in requests]
        passed = [(request, hidden) for request, hidden in alone if hidden]
        if not passed:
            self.failure = EngineFailed(f"every row of a batch of {len(requests)} failed")
        return [request for request, _ in passed], [hidden[0] for _, hidden in passed]

    def _prefill(self, requests: Sequence[Request]) -> Tensor:
        rows = [request.row for request in requests if request.row is not None]
        if self.guard is None:
            hidden = self.backbone.prefill(rows)
            self._set_prefilled(requests)
            self._set_decisions(requests, [Decision(Verdict.PASS, None, 0.0)] * len(requests))
            return hidden
        tapped = self.guard.tapped if self.shadow is None else self.shadow.tapped_with(self.guard)
        with self.backbone.tap(tapped) as tap:
            hidden = self.backbone.prefill(rows)
        if self.shadow is None:
            self._judge(self.guard, requests, tap.states)
        else:
            own, shadowed = self.shadow.apart(tap.states, self.guard)
            scores = self._judge(self.guard, requests, own)
            self._judge_in_shadow(self.shadow, requests, scores if self.shadow.guard is self.guard else shadowed)
        return hidden

    def _decode(self, requests: Sequence[Request]) -> Tensor:
        rows = [request.row for request in requests if request.row is not None]
        return self.backbone.decode(rows, torch.tensor([request.output_ids[-1] for request in requests]))

    # guard -----------------------------------------------------------------------------------------------------

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

    def _drop_judged(self, started: list[Request], hidden: list[Tensor], events: list[Event]) -> Computed:
        """End the rows that want no token, and those that their policy gives none; the others go on."""
        ends = [_end_of_judged(request) for request in started]
        if not any(ends):
            return started, hidden
        events.extend(self._end(request, end) for request, end in zip(started, ends, strict=True) if end)
        kept = [end is None for end in ends]
        return list(compress(started, kept)), [torch.cat(hidden)[torch.tensor(kept)]] if any(kept) else []

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
        if request.row is not None:
            self.backbone.close_row(request.row)
            request.row = None
        request.timings.finished = monotonic()
        return Event(request, token=token, logprobs=logprobs, finish=finish, error=error)


def _end_of_judged(request: Request) -> Finish | None:
    """Why a row ends with its prompt, if it does."""
    if request.decision is not None and request.decision.verdict is Verdict.BLOCKED:
        return Finish.CONTENT_FILTER
    return Finish.STOP if request.max_tokens == 0 else None
