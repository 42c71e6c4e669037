"""The engine on vLLM: it computes and samples, the decision on every prompt is made here. Imports nothing of vLLM."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from models.row_sampler import GrammarError
from server.engine.answers import Answers, final
from server.engine.judge import Judge
from server.engine.protocol import Effort, Facts, Load
from server.engine.vllm.request import VllmRequest
from server.engine.vllm.runs import Core, Progress, Run
from server.engine.vllm.worker import PromptRead, Read, drained
from server.request import Ask, EngineFailed, Event, Finish, GrammarFailed, RequestFailed
from steering.guard import Guard
from steering.policy import Mode, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from models.info import BackboneInfo
    from models.inputs import InputBuilder
    from models.layout import Layout
    from models.sampling import Logprobs
    from server.engine.grammars import Grammars

logger = logging.getLogger(__name__)


class VllmEngine:
    """An `Engine` of `VllmRequest`s on vLLM.

    A run's tokens are taken once there is a decision on its prompt, and there is none without what the worker has read
    of it: a run whose first token comes without that fails. So does one whose answer is watched, where a token comes
    and the one before it was not read. A steered request's run is aborted, and begins anew with its eps; its prompt is
    in the prefix cache then.
    """

    def __init__(
        self,
        core: Core,
        channel: SimpleQueue[Read],
        info: BackboneInfo,
        inputs: InputBuilder,
        guard: Guard | None,
        grammars: Grammars,
    ) -> None:
        self.failure: EngineFailed | None = None
        self._core = core
        self._channel = channel
        self._info = info
        self._inputs = inputs
        self._grammars = grammars
        self._judge: Judge[VllmRequest] = Judge(guard)
        self._answers = Answers(None if guard is None else guard.answers, inputs.layout)
        self._live: dict[str, VllmRequest] = {}
        self._runs: dict[str, VllmRequest] = {}
        self._refused: list[Event] = []  # ends that the next step tells
        self._waiting: set[VllmRequest] = set()  # runs of which nothing has been computed

    @property
    def facts(self) -> Facts:
        """What is loaded."""
        return Facts.loaded(self._info, self._judge.guard, has_series=True)

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

    def effort(self, asks: Sequence[Ask]) -> Effort:
        """How much there is to compile, for any thread."""
        return self._grammars.effort(asks)

    def prepare(self, asks: Sequence[Ask]) -> list[VllmRequest]:
        """Requests of all that is asked together. Raises GrammarFailed where a schema cannot be followed."""
        requests: dict[str, VllmRequest] = {}
        for ask in asks:
            grammar = None if ask.schema is None else self._grammars.of(ask.schema)
            source = None if ask.leader is None else requests[ask.leader]
            requests[ask.id] = VllmRequest(ask, params=ask.params, grammar=grammar, source=source)
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

    def series(self) -> bytes:
        """What vLLM tells of itself, in Prometheus' text format."""
        return self._core.series()

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
        self._decide(progress, self._hear(), events)
        for each in progress:
            if (shown := self._runs.get(each.run)) is not None:
                self._advance(shown, each, events)
        return events

    def _hear(self) -> float:
        """Give requests what was read of them; the seconds that reading prompts took in this step."""
        seconds = 0.0
        for read in drained(self._channel):
            if isinstance(read, PromptRead):
                seconds = max(seconds, read.seconds)
            if (request := self._runs.get(read.run)) is not None:
                request.hear(read)
        return seconds

    def _decide(self, progress: Sequence[Progress], spent: float, events: list[Event]) -> None:
        """Decide on the requests whose first token has come, read in `spent` seconds; what was not read fails."""
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
        if self._judge.guard is None or request.policy.mode is Mode.OFF:
            return False
        return request.notes is None or len(request.notes) != len(request.prompt.ids)

    def _read(self, request: VllmRequest) -> tuple[Tensor, Layout]:
        """What was read of a prompt, and how that is laid out."""
        assert request.notes is not None, f"nothing was read of {request.id}"
        return request.notes, self._inputs.layout(request.prompt.ids)

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
            if self._intervened(request, events):
                return
            logprobs = None if progress.logprobs is None else progress.logprobs[place]
            cut = place == last and progress.ended == "length"
            events.append(self._take(request, token, logprobs, cut=cut))
            if events[-1].finish is not None:
                return
        if progress.ended is not None:
            events.append(self._fail(request, f"vLLM ended it by itself: {progress.ended}"))

    def _take(self, request: VllmRequest, token: int, logprobs: Logprobs | None, *, cut: bool) -> Event:
        """Give a request its next token; `cut`: vLLM gives it no more."""
        refused = Finish.CONTENT_FILTER if request.eps else None
        if request.room <= 0:  # its last token was computed so that it is read before it is shown
            return self._end(request, refused or Finish.LENGTH)
        ends = token in self._info.eos_ids
        try:
            request.take(token, ends=ends)
        except GrammarError as error:
            return self._end(request, Finish.ERROR, GrammarFailed(str(error)))
        if ends:
            return self._end(request, refused or Finish.STOP)
        if request.watch is None and (cut or request.room <= 0):
            return self._end(request, refused or Finish.LENGTH, token=token, logprobs=logprobs)
        return Event(request, token=token, logprobs=logprobs)

    def _intervened(self, request: VllmRequest, events: list[Event]) -> bool:
        """Judge an answer that is watched, after its last token; whether its run goes on no more."""
        if request.watch is None or not request.output_ids:
            return False
        value = request.values.pop(len(request.output_ids) - 1, None)
        if value is None:
            events.append(self._fail(request, "the guard has told nothing of its answer"))
            return True
        answer = self._answers.decide([request], [[value]]).get(request)
        if answer is None:
            return False
        request.answer = answer
        if answer.verdict is Verdict.BLOCKED:
            events.append(self._end(request, Finish.CONTENT_FILTER))
            return True
        events.append(Event(request))
        if answer.verdict is Verdict.MONITORED:
            return False
        self._answers.begin_refusal(request)
        self._leave(request)
        self._begin(request)
        return True

    # runs ------------------------------------------------------------------------------------------------------

    def _begin(self, request: VllmRequest) -> None:
        """Begin a run of a request; the next step tells of one that vLLM refuses."""
        watched = request.policy.output.mode is not Mode.OFF and self._judge.guard is not None
        # One token more than is shown: a token is read when the next one is computed.
        most = max(1, request.room) + watched
        name = f"{request.id}/{request.runs}"
        run = Run(name, request.prompt, request.params, most, request.eps, watched, request.grammar)
        try:
            self._core.add(run)
        except ValueError as error:
            self._refused.append(self._fail(request, str(error)))
            return
        request.runs += 1
        request.values.clear()
        request.run = name
        self._runs[name] = request
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
        heir = request.leave()
        if heir is not None and not isinstance(error, EngineFailed):  # it ends without a decision
            self._begin(heir)
        request.timings.finished = monotonic()
        request.answer = final(request)
        return Event(request, token=token, logprobs=logprobs, finish=finish, error=error)
