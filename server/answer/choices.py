"""All generations that answer one HTTP request: accepted together, heard together, ended with one outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

from server.answer.deadline import Deadline
from server.answer.delta import Delta
from server.answer.generation import Generation
from server.answer.pipeline import Pipeline
from server.engine.client_protocol import Submits
from server.engine.wire import Parcel
from server.errors import ApiError, BadRequest, ServerFault, Unavailable
from server.request import EngineFailed, Event, Finish, GrammarFailed, Request
from server.watch.metrics import Metrics

logger = logging.getLogger(__name__)

# The outcome of several: the first of these that any of them ended with.
_OUTCOMES = (Finish.ERROR, Finish.TIMEOUT, Finish.ABORT, Finish.CONTENT_FILTER, Finish.LENGTH, Finish.STOP)

Update = tuple[Generation, Delta | None]  # a delta of a choice; None: the choice has ended


class Choices:
    """The generations of one answer, in the order of their index. Only for the event loop's thread.

    They fail together: where one fails, nobody can be given the whole answer, so the others are aborted.
    """

    def __init__(
        self,
        parcel: Parcel,
        engine: Submits,
        pipeline: Callable[[Request], Pipeline],
        metrics: Metrics,
        *,
        keep: bool = False,
    ) -> None:
        requests = parcel.requests
        assert requests, "an answer has at least one choice"
        self.generations = [
            Generation(index, request, pipeline(request), metrics, keep=keep) for index, request in enumerate(requests)
        ]
        self.failure: ApiError | None = None  # what the client is told if this ended without an answer
        self._parcel: Parcel | None = parcel  # until it is submitted
        self._engine = engine
        self._metrics = metrics
        self._by_request = dict(zip(requests, self.generations, strict=True))
        self._arrived = requests[0].timings.arrived
        self.decided = asyncio.Event()  # the guard has judged every prompt, or will not
        self.over = asyncio.Event()  # the last choice has ended
        self.listener: Callable[[], None] | None = None  # called where there may be `updates`
        self._going = list(self.generations)  # those whose end `updates` has not returned
        self._timer: asyncio.TimerHandle | None = None

    def start(self, deadline: Deadline | None = None) -> None:
        """Hand the requests to the engine; the deadline ends what lives then. Raises NotReady, QueueFull."""
        assert self._parcel is not None, "an answer is begun once"
        self._engine.submit(self._parcel, self._deliver)
        self._parcel = None
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, deadline.left), self._fail, deadline.exceeded(), Finish.TIMEOUT)
        self._metrics.accepted([generation.request for generation in self.leaders])

    @property
    def leaders(self) -> list[Generation]:
        """The first generation of each prompt: prompts are judged, and counted, once."""
        return [generation for generation in self.generations if generation.request.leader is None]

    @property
    def tokens(self) -> int:
        """Generated tokens of all choices."""
        return sum(generation.tokens for generation in self.generations)

    @property
    def outcome(self) -> Finish | None:
        """How the answer ended: by the gravest end of its choices; `None` while one goes on."""
        ends = {generation.finish for generation in self.generations}
        return None if None in ends else next(finish for finish in _OUTCOMES if finish in ends)

    def abort(self, finish: Finish = Finish.ABORT) -> None:
        """Nobody wants the rest: end it and free its rows. What has already ended stays as it is."""
        for generation in self.generations:
            if not generation.ended:
                generation.close(finish)
                self._engine.abort(generation.request.id)
        self._settle()
        self._tell()

    @property
    def failed_before_output(self) -> bool:
        """Whether the answer failed before it had a token."""
        return self.failure is not None and self.tokens == 0

    @property
    def drained(self) -> bool:
        """Whether `updates` has returned everything: the end of every choice, or all that came before `failure`."""
        return not self._going

    def updates(self) -> list[Update]:
        """What has come since the last call: each choice's deltas, and the choice without one at its end."""
        updates: list[Update] = []
        for generation in self._going:
            for delta in generation.take():
                updates.append((generation, delta))  # noqa: PERF401  faster than a generator for one delta
            if generation.ended and self.failure is None:
                updates.append((generation, None))
        self._going = [generation for generation in self._going if not generation.ended]
        return updates

    # events ----------------------------------------------------------------------------------------------------

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            generation = self._by_request[event.request]
            if not generation.ended:
                self._take(generation, event)
        if not self.decided.is_set() and all(generation.begun for generation in self.leaders):
            self.decided.set()
        self._tell()

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener()

    def _take(self, generation: Generation, event: Event) -> None:
        try:
            generation.deliver(event)
        except Exception as error:
            logger.exception("request %s: its events could not be turned into text", event.request.id)
            generation.close(Finish.ERROR, error)
        if generation.ended:
            self._on_end(generation, engine_knows=event.finish is not None)

    def _on_end(self, generation: Generation, *, engine_knows: bool) -> None:
        if not engine_knows:
            self._engine.abort(generation.request.id)
        if self.failure is None and (failure := _failure(generation)) is not None:
            self._fail(failure)
        self._settle()

    def _fail(self, failure: ApiError, finish: Finish = Finish.ABORT) -> None:
        """The client gets this instead of the rest."""
        self.failure = failure
        self.abort(finish)

    def _settle(self) -> None:
        """Count the answer's one outcome, once all its choices have ended."""
        if not self.over.is_set() and (outcome := self.outcome) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._metrics.ended(outcome, monotonic() - self._arrived)
            self.decided.set()
            self.over.set()


def _failure(generation: Generation) -> ApiError | None:
    """What the client is told if this choice ended without an answer."""
    match generation.finish:
        case Finish.ERROR if isinstance(generation.error, GrammarFailed):
            schema = generation.request.ask.schema
            param = None if schema is None else schema.param
            return BadRequest(f"The answer could not follow the schema: {generation.error}.", param=param)
        case Finish.ERROR if isinstance(generation.error, EngineFailed):
            return Unavailable("The model failed while it generated the answer.", code="engine_failed")
        case Finish.ERROR:
            return ServerFault("This request failed while its answer was generated.", code="generation_failed")
        case Finish.ABORT:
            return Unavailable("The server is shutting down; the answer was cut short.", code="shutting_down")
    return None
