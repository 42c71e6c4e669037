"""Our own engine: one step is schedule -> run -> postprocess. Token ids and tensors only, no HTTP, no text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.grammar import GrammarCompiler
from models.row_sampler import GrammarError, RowSampler
from models.sampling import Logprobs, sample
from server.engine.answers import Answers, final
from server.engine.budget import Spent
from server.engine.computed import Computed
from server.engine.grammars import Grammars
from server.engine.judge import Judge
from server.engine.own_request import OwnRequest
from server.engine.prompt_logprobs import PromptLogprobs
from server.engine.protocol import Effort, Facts, Load
from server.engine.rows import BackboneRows, row_of
from server.engine.scheduler import Scheduler, Work
from server.request import Ask, EngineFailed, Event, Finish, GrammarFailed, RequestFailed
from steering.guard import Guard
from steering.policy import AnswerDecision, Verdict
from steering.shadow import Shadow

if TYPE_CHECKING:
    from models.backbone import Backbone
    from models.layout import Layout

logger = logging.getLogger(__name__)


class OwnEngine:
    """Continuous batching of a guarded backbone: an `Engine` of `OwnRequest`s."""

    def __init__(
        self, backbone: Backbone, guard: Guard | None, scheduler: Scheduler, shadow: Shadow | None = None
    ) -> None:
        self.backbone = backbone
        self.scheduler = scheduler
        self.failure: EngineFailed | None = None
        self._judge: Judge[OwnRequest] = Judge(guard, shadow)
        self._prompt_logprobs = PromptLogprobs(backbone, self._judge)
        self._answers = Answers(None if guard is None else guard.answers, backbone.inputs.layout, shadow)
        self.read_prompts()
        self._rows = BackboneRows(backbone)
        info = backbone.info
        self._grammars = Grammars(GrammarCompiler(backbone.tokenizer, info.vocab_size, info.eos_ids))

    # what is asked ---------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What is loaded."""
        return Facts.loaded(self.backbone.info, self._judge.guard)

    @property
    def load(self) -> Load:
        """How much there is to do."""
        return Load(len(self.scheduler.running), len(self.scheduler.waiting), self.backbone.cache_usage)

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return self.scheduler.idle

    def read_prompts(self) -> None:
        """Have the backbone read for this engine's guard; for one whose backbone another engine has used."""
        self.backbone.read_prompts(self._judge.reader)
        self.backbone.watch_answers(self._answers.layers)

    def effort(self, asks: Sequence[Ask]) -> Effort:
        """How much there is to compile, for any thread."""
        return self._grammars.effort(asks)

    def prepare(self, asks: Sequence[Ask]) -> list[OwnRequest]:
        """Requests with their samplers, for any thread. Raises GrammarFailed where a schema cannot be followed."""
        requests: dict[str, OwnRequest] = {}
        for ask in asks:
            grammar = None if ask.schema is None else self._grammars.of(ask.schema)
            sampler = RowSampler(ask.params, ask.prompt.ids, grammar, self.backbone.info.eos_ids)
            source = None if ask.leader is None else requests[ask.leader]
            requests[ask.id] = OwnRequest(ask, sampler=sampler, source=source)
        return [*requests.values()]

    def add(self, request: OwnRequest) -> None:
        """Put a request at the end of the queue."""
        self.scheduler.add(request)

    def abort(self, request_id: str) -> Event | None:
        """End a request now and free its row; None if it has ended."""
        request = self.scheduler.find(request_id)
        return None if request is None else self._end(request, Finish.ABORT)

    def series(self) -> bytes:
        """Nothing: all that is measured of it is measured outside."""
        return b""

    def fail_all(self, error: EngineFailed) -> list[Event]:
        """End every live request with the engine's failure."""
        return [self._end(request, Finish.ERROR, error) for request in self.scheduler.live()]

    # step ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute what is scheduled; the events of the step, a token for each row that was ready for one.

        `failure` is set when a batch and then all of its rows alone fail: nothing can be served any more.
        """
        began, encoded = monotonic(), self.backbone.encoded
        plan = self.scheduler.schedule(self._rows)
        events = [self._fail(request, error) for request, error in plan.refused]
        read = self.backbone.reading_seconds
        computed = self._run(plan.work, events)
        if computed is None:
            return events
        computed = computed.of([request.pending == 0 for request in computed.requests])
        computed = self._judged(computed, events, self.backbone.reading_seconds - read)
        if computed.requests:
            self._choose(computed, events)
        encoded = self.backbone.encoded.since(encoded)
        seconds = monotonic() - began
        self.scheduler.budget.observe(Spent(seconds, plan.decoding, plan.prompt_tokens, plan.prompt_pairs, *encoded))
        return events

    def _choose(self, computed: Computed, events: list[Event]) -> None:
        """The next token of each row, unless its answer is flagged now, or has all of its tokens."""
        # Of those that have, the last token was computed so that it is read before it is shown.
        lacking = computed.of([request.room > 0 for request in computed.requests])
        chosen: dict[OwnRequest, tuple[int, Logprobs | None]] = {}
        if lacking.requests:
            logits = self.backbone.logits(self._judge.steer([each.eps for each in lacking.requests], lacking.hidden))
            tokens, logprobs = sample(logits, [request.sampler for request in lacking.requests])
            chosen = {
                request: (token, logprobs.get(row))
                for row, (request, token) in enumerate(zip(lacking.requests, tokens, strict=True))
            }
        flagged = {} if computed.read is None else self._answers.decide(computed.requests, computed.read.tolist())
        for request in computed.requests:
            if (answer := flagged.get(request)) is not None:
                events.append(self._intervene(request, answer))
                if answer.verdict is not Verdict.MONITORED:
                    continue
            if request in chosen:
                events.append(self._advance(request, *chosen[request]))
            else:
                events.append(self._end(request, Finish.CONTENT_FILTER if request.eps else Finish.LENGTH))

    def _intervene(self, request: OwnRequest, answer: AnswerDecision) -> Event:
        """Do what was decided on a flagged answer."""
        request.answer = answer
        if answer.verdict is Verdict.BLOCKED:
            return self._end(request, Finish.CONTENT_FILTER)
        if answer.verdict is Verdict.STEERED:
            self._answers.begin_refusal(request)
            self._rows.restart(request)
        return Event(request)

    def _run(self, work: Sequence[Work], events: list[Event]) -> Computed | None:
        """One batched pass; where it raises, each row alone, so that one bad request fails by itself."""
        if not work:
            return None
        try:
            return self._forward(work)
        except torch.AcceleratorError:
            raise  # after an error of the device itself, nothing that it computes can be trusted
        except Exception as error:  # noqa: BLE001  any other failure of a model's forward is contained here
            if len(work) == 1:
                events.append(self._fail(work[0].request, error))
                return None
            logger.warning("a batch of %d rows failed, running them one by one: %s", len(work), error)
        alone = [computed for each in work if (computed := self._run([each], events)) is not None]
        if alone:
            return Computed.joined(alone)
        self.failure = EngineFailed(f"every row of a batch of {len(work)} failed")
        return None

    def _forward(self, work: Sequence[Work]) -> Computed:
        requests = [each.request for each in work]
        rows, counts = [row_of(request) for request in requests], [each.tokens for each in work]
        watched = self._answers.watched(requests)
        hidden = self.backbone.forward(rows, counts, watched=watched, keep=self._prompt_logprobs.keep(requests))
        return Computed(requests, hidden, self._answers.read(self.backbone.answer_states) if watched else None)

    def _judged(self, computed: Computed, events: list[Event], spent: float) -> Computed:
        """Decide on the prompts that are computed now; those that want no token, or get none, end here."""
        new = computed.of([request.decision is None for request in computed.requests])
        if not new.requests:
            return computed
        self._judge.judge(new.requests, self._read, spent)
        self._prompt_logprobs.tell(new.requests)
        for request in new.requests:
            self._lead(request, events)
        ends = {request: end for request in new.requests if (end := _end_of_judged(request)) is not None}
        events.extend(self._end(request, end) for request, end in ends.items())
        return computed.of([request not in ends for request in computed.requests])

    def _read(self, request: OwnRequest) -> tuple[Tensor, Layout]:
        """What was read of a request's prompt, and how that is laid out."""
        ids = request.prompt.ids
        return self.backbone.notes(row_of(request), len(ids)), self.backbone.inputs.layout(ids)

    def _lead(self, request: OwnRequest, events: list[Event]) -> None:
        """What is decided on a prompt holds for its other requests; those that want no token, or get none, end here."""
        for follower in [*request.followers]:
            self._judge.follow(request, follower)
            if (end := _end_of_judged(follower)) is not None:
                follower.timings.scheduled = request.timings.scheduled
                follower.timings.prefilled = request.timings.prefilled
                events.append(self._end(follower, end))

    def _advance(self, request: OwnRequest, token: int, logprobs: Logprobs | None) -> Event:
        """Give a request its token, and end it where it ends."""
        if request.timings.first_token is None:
            request.timings.first_token = monotonic()
            if request.timings.prefilled is None:  # a follower, judged before it ran
                request.timings.prefilled = request.timings.first_token
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
        row_of(request).append(token)
        if request.room > 0 or request.watch is not None:
            return Event(request, token=token, logprobs=logprobs)
        return self._end(request, Finish.CONTENT_FILTER if steered else Finish.LENGTH, token=token, logprobs=logprobs)

    def _fail(self, request: OwnRequest, cause: Exception) -> Event:
        logger.error("request %s failed: %s: %s", request.id, type(cause).__name__, cause)
        error = RequestFailed(f"{type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return self._end(request, Finish.ERROR, error)

    def _end(
        self,
        request: OwnRequest,
        finish: Finish,
        error: RequestFailed | EngineFailed | None = None,
        token: int | None = None,
        logprobs: Logprobs | None = None,
    ) -> Event:
        heir = self.scheduler.finish(request, hand_over=finish is not Finish.ERROR)
        if heir is None:
            self._rows.release(request)
        else:
            self._rows.hand_over(request, heir)
        request.timings.finished = monotonic()
        request.answer = final(request)
        self._answers.end_shadow(request)
        return Event(request, token=token, logprobs=logprobs, finish=finish, error=error)


def _end_of_judged(request: OwnRequest) -> Finish | None:
    """Why a row ends with its prompt, if it does."""
    if request.decision is not None and request.decision.verdict is Verdict.BLOCKED:
        return Finish.CONTENT_FILTER
    return Finish.STOP if request.max_tokens == 0 else None
