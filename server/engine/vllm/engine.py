"""The engine on vLLM: it computes and samples, the decision on every prompt is made here. Imports nothing of vLLM."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from server.engine.judge import Judge
from server.engine.protocol import Effort, Facts, Load
from server.engine.vllm.request import VllmRequest
from server.request import Ask, EngineFailed, Event, Finish, RequestFailed
from steering.guard import Guard
from steering.policy import Mode, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from models.info import BackboneInfo
    from models.inputs import InputBuilder
    from models.layout import Layout
    from models.prompt import Prompt
    from models.row_sampler import SamplingParams
    from models.sampling import Logprobs
    from server.engine.vllm.worker import Read

logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """What a step did to a run: its next tokens, and why it ended, in vLLM's word."""

    run: str
    tokens: Sequence[int]
    logprobs: Sequence[Logprobs] | None
    ended: str | None
    cached_tokens: int | None


class Core(Protocol):
    """What computes: vLLM's engine, as `VllmEngine` uses it. A run is a request of vLLM's."""

    @property
    def load(self) -> Load:
        """How much there is to do."""

    def add(self, run: str, prompt: Prompt, params: SamplingParams, max_tokens: int, eps: float) -> None:
        """Begin a run. Raises ValueError where vLLM does not take it."""

    def abort(self, run: str) -> None:
        """Forget a run; nothing happens if it has ended."""

    def step(self) -> Sequence[Progress]:
        """Compute what is scheduled."""

    def scheduled(self, run: str) -> bool:
        """Whether a run has begun to be computed."""


class VllmEngine:
    """An `Engine` of `VllmRequest`s on vLLM.

    A run's tokens are taken once there is a decision on its prompt, and there is none without what the worker has read
    of it: a run whose first token comes without that fails. A steered request's run is aborted, and begins anew with
    its eps; its prompt is in the prefix cache then.
    """

    def __init__(
        self, core: Core, channel: SimpleQueue[Read], info: BackboneInfo, inputs: InputBuilder, guard: Guard | None
    ) -> None:
        self.failure: EngineFailed | None = None
        self._core = core
        self._channel = channel
        self._info = info
        self._inputs = inputs
        self._judge: Judge[VllmRequest] = Judge(guard)
        self._live: dict[str, VllmRequest] = {}
        self._runs: dict[str, VllmRequest] = {}
        self._refused: list[Event] = []  # ends that the next step tells
        self._waiting: set[VllmRequest] = set()  # runs of which nothing has been computed

    # what is asked ---------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What is loaded."""
        guard = self._judge.guard
        if guard is None:
            return Facts(self._info)
        without_answers = guard.manifest.model_copy(update={"answers": None})  # nobody watches them here
        return Facts(self._info, without_answers, guard.layer, guard.calibration_scores)

    @property
    def load(self) -> Load:
        """How much there is to do."""
        load = self._core.load
        followers = sum(request.run is None for request in self._live.values())
        return load._replace(waiting=load.waiting + followers)

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._live and not self._refused

    def effort(self, asks: Sequence[Ask]) -> Effort:  # noqa: ARG002
        """Nothing is compiled here."""
        return Effort.NONE

    def prepare(self, asks: Sequence[Ask]) -> list[VllmRequest]:
        """Requests of all that is asked together. Raises RequestFailed for what this engine does not do."""
        requests: dict[str, VllmRequest] = {}
        for ask in asks:
            if ask.schema is not None:
                raise RequestFailed("answers that follow a JSON schema are not served by the vllm engine")
            if ask.policy.output.mode is not Mode.OFF or ask.scores:
                raise RequestFailed("answers are not watched, and tokens not scored, by the vllm engine")
            source = None if ask.leader is None else requests[ask.leader]
            requests[ask.id] = VllmRequest(ask, params=ask.params, source=source)
        return [*requests.values()]

    def add(self, request: VllmRequest) -> None:
        """Put a request at the end of the queue."""
        self._live[request.id] = request
        source = request.source
        if source is None or source.id not in self._live:
            self._begin(request)
        elif source.decision is None:
            source.followers.append(request)
        else:
            self._follow(source, request, self._refused)

    def abort(self, request_id: str) -> Event | None:
        """End a request now; None if it has ended."""
        request = self._live.get(request_id)
        return None if request is None else self._end(request, Finish.ABORT)

    def fail_all(self, error: EngineFailed) -> list[Event]:
        """End every live request with the engine's failure."""
        return [self._end(request, Finish.ERROR, error) for request in [*self._live.values()]]

    # step ------------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Have vLLM make a step, decide on the prompts that it has computed, and tell of tokens that may be shown."""
        began = monotonic()
        events, self._refused = self._refused, []
        if not self._runs:
            return events
        progress = self._core.step()
        for request in [each for each in self._waiting if each.run is not None and self._core.scheduled(each.run)]:
            request.timings.scheduled = request.timings.scheduled or began
            self._waiting.discard(request)
        arrived = [*self._arrived()]
        for read in arrived:
            if (one := self._runs.get(read.run)) is not None:
                one.read = read.notes
        self._decide(progress, max((read.seconds for read in arrived), default=0.0), events)
        for each in progress:
            if (shown := self._runs.get(each.run)) is not None:
                self._advance(shown, each, events)
        return events

    def _arrived(self) -> Iterator[Read]:
        while True:
            try:
                yield self._channel.get_nowait()
            except Empty:
                return

    def _decide(self, progress: Sequence[Progress], spent: float, events: list[Event]) -> None:
        """Decide on the requests whose first token has come; one of which nothing was read fails.

        `spent`: seconds that reading them took.
        """
        new = []
        for each in progress:
            request = self._runs.get(each.run)
            if request is not None and request.decision is None and each.tokens:
                request.cached_tokens = each.cached_tokens
                new.append(request)
        for request in [each for each in new if self._lacks(each)]:
            new.remove(request)
            events.append(self._fail(request, "the guard has told nothing of its prompt"))
        if not new:
            return
        self._judge.judge(new, self._read, spent)
        for request in new:
            followers, request.followers = request.followers, []
            self._go_on(request, events)
            for follower in followers:
                self._follow(request, follower, events)

    def _lacks(self, request: VllmRequest) -> bool:
        return self._judge.guard is not None and request.policy.mode is not Mode.OFF and request.read is None

    def _read(self, request: VllmRequest) -> tuple[Tensor, Layout]:
        """What was read of a prompt: of its last token alone, which is all that the readers served here look at."""
        assert request.read is not None, f"nothing was read of {request.id}"
        ids = request.prompt.ids
        notes = request.read.new_full((len(ids), request.read.shape[1]), torch.nan)
        notes[-1] = request.read[0]
        return notes, self._inputs.layout(ids)

    def _go_on(self, request: VllmRequest, events: list[Event]) -> None:
        """Do what was decided on a request's prompt."""
        assert request.decision is not None, f"{request.id} has no decision"
        if request.decision.verdict is Verdict.BLOCKED:
            events.append(self._end(request, Finish.CONTENT_FILTER))
        elif request.max_tokens == 0:
            events.append(self._end(request, Finish.STOP))
        elif request.eps or request.run is None:
            self._leave(request)
            self._begin(request)

    def _follow(self, source: VllmRequest, request: VllmRequest, events: list[Event]) -> None:
        """What was decided on a prompt holds for its other choices."""
        self._judge.follow(source, request)
        request.timings.scheduled, request.timings.prefilled = source.timings.scheduled, source.timings.prefilled
        self._go_on(request, events)

    def _advance(self, request: VllmRequest, progress: Progress, events: list[Event]) -> None:
        """Give a request its tokens, and end it where it ends."""
        if request.cached_tokens is None:  # a choice that another one's decision holds for
            request.cached_tokens = progress.cached_tokens
        if progress.tokens and request.timings.first_token is None:
            request.timings.first_token = monotonic()
        last = len(progress.tokens) - 1
        for place, token in enumerate(progress.tokens):
            if token in self._info.eos_ids:
                events.append(self._end(request, Finish.CONTENT_FILTER if request.eps else Finish.STOP))
                return
            request.output_ids.append(token)
            logprobs = None if progress.logprobs is None else progress.logprobs[place]
            if request.room > 0 and (place < last or progress.ended != "length"):
                events.append(Event(request, token=token, logprobs=logprobs))
                continue
            finish = Finish.CONTENT_FILTER if request.eps else Finish.LENGTH
            events.append(self._end(request, finish, token=token, logprobs=logprobs))
            return
        if progress.ended is not None:
            events.append(self._fail(request, f"vLLM ended it by itself: {progress.ended}"))

    # runs ------------------------------------------------------------------------------------------------------

    def _begin(self, request: VllmRequest) -> None:
        """Begin a run of a request; the next step tells of one that vLLM refuses."""
        run = f"{request.id}/{'steered' if request.eps else 'plain'}"
        try:
            self._core.add(run, request.prompt, request.params, max(1, request.max_tokens), request.eps)
        except ValueError as error:
            self._refused.append(self._fail(request, str(error)))
            return
        request.run = run
        self._runs[run] = request
        self._waiting.add(request)

    def _leave(self, request: VllmRequest) -> None:
        """End a request's run, if it has one."""
        if request.run is not None:
            del self._runs[request.run]
            self._core.abort(request.run)
            request.run = None
        self._waiting.discard(request)

    def _fail(self, request: VllmRequest, words: str) -> Event:
        logger.error("request %s failed: %s", request.id, words)
        return self._end(request, Finish.ERROR, RequestFailed(words))

    def _end(
        self,
        request: VllmRequest,
        finish: Finish,
        error: RequestFailed | EngineFailed | None = None,
        token: int | None = None,
        logprobs: Logprobs | None = None,
    ) -> Event:
        del self._live[request.id]
        self._leave(request)
        if request.source is not None and request in request.source.followers:
            request.source.followers.remove(request)
        if request.followers and not isinstance(error, EngineFailed):  # it ends without a decision: the next one leads
            heir, *others = request.followers
            heir.source, heir.followers = None, others
            for each in others:
                each.source = heir
            self._begin(heir)
        request.followers = []
        request.timings.finished = monotonic()
        return Event(request, token=token, logprobs=logprobs, finish=finish, error=error)
