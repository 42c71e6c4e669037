"""One accepted request, seen from the event loop: engine events in, text out, exactly one outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Protocol

from server.detokenizer import Detokenizer, TextDecoder
from server.engine_thread import Deliver
from server.errors import ApiError, ServerFault, Unavailable
from server.metrics import Metrics
from server.request import EngineFailed, Event, Finish, Request
from steering.policy import Verdict

logger = logging.getLogger(__name__)


class Submits(Protocol):
    """What a generation needs of the engine's thread."""

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Accept a request. Raises NotReady, QueueFull."""

    def abort(self, request_id: str) -> None:
        """End it before the next step."""


class Generation:
    """A request between `start` and its `finish`. Only for the event loop's thread.

    Text waits here until it is fetched. The request's `max_tokens` bounds it, whatever the speed of the reader.
    """

    def __init__(
        self, request: Request, engine: Submits, decoder: TextDecoder, stops: Sequence[str], metrics: Metrics
    ) -> None:
        self.request = request
        self.tokens = 0  # generated, whether or not their text is shown
        self.finish: Finish | None = None
        self._error: Exception | None = None
        self._engine = engine
        self._decoder = decoder
        self._detokenizer = Detokenizer(decoder, stops)
        self._metrics = metrics
        self._texts: list[str] = []
        self._last_token: float | None = None
        self._begun = False
        self._news = asyncio.Event()

    def start(self) -> None:
        """Hand the request to the engine. Raises NotReady, QueueFull."""
        self._engine.submit(self.request, self._deliver)
        self._metrics.accepted(self.request)

    def abort(self) -> None:
        """Nobody wants the rest: end it and free its row. Nothing happens if it has already ended."""
        if self.finish is None:
            self._close(Finish.ABORT)
            self._engine.abort(self.request.id)

    @property
    def flagged(self) -> bool:
        """Whether the guard changed this answer."""
        decision = self.request.decision
        return decision is not None and decision.verdict in (Verdict.STEERED, Verdict.BLOCKED)

    @property
    def failure(self) -> ApiError | None:
        """What the client is told if this ended without an answer."""
        match self.finish:
            case Finish.ERROR if isinstance(self._error, EngineFailed):
                return Unavailable("The model failed while it generated the answer.", code="engine_failed")
            case Finish.ERROR:
                return ServerFault("This request failed while its answer was generated.", code="generation_failed")
            case Finish.ABORT:
                return Unavailable("The server is shutting down; the answer was cut short.", code="shutting_down")
        return None

    async def begin(self) -> None:
        """Wait for the first event: from then on the guard's decision is known. Raises the failure it ends with."""
        while not self._begun and self.finish is None:
            await self._wait()
        if not self.tokens and (failure := self.failure) is not None:
            raise failure

    async def texts(self) -> AsyncIterator[str]:
        """The answer's text, in pieces as they come; it ends when `finish` is set and all is fetched."""
        while True:
            if self._texts:
                text = "".join(self._texts)
                self._texts.clear()
                yield text
            elif self.finish is not None:
                return
            else:
                await self._wait()

    # events ----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _deliver(self, events: Sequence[Event]) -> None:
        try:
            for event in events:
                if self.finish is None:
                    self._take(event)
        except Exception as error:
            logger.exception("request %s: its events could not be turned into text", self.request.id)
            if self.finish is None:
                self._close(Finish.ERROR, error)
                self._engine.abort(self.request.id)
        self._news.set()

    def _take(self, event: Event) -> None:
        if not self._begun:
            self._begin()
        if event.token is not None:
            self._count()
            self._add(self._detokenizer.push(event.token))
            if self._detokenizer.stopped:
                self._close(Finish.STOP)
                if event.finish is None:
                    self._engine.abort(self.request.id)
                return
        if event.finish is not None:
            self._add(self._detokenizer.finish())
            blocked = self.request.decision is not None and self.request.decision.verdict is Verdict.BLOCKED
            if blocked and event.finish is Finish.CONTENT_FILTER:
                self._add(self.request.policy.refusal)
            self._close(Finish.STOP if self._detokenizer.stopped else event.finish, event.error)

    def _begin(self) -> None:
        self._begun = True
        self._metrics.decided(self.request)
        if self.flagged:
            # A refusal is said in full: stop strings are the client's.
            self._detokenizer = Detokenizer(self._decoder)

    def _count(self) -> None:
        now = monotonic()
        self._metrics.token(self._last_token, now, self.request.timings.arrived)
        self._last_token = now
        self.tokens += 1

    def _add(self, text: str) -> None:
        if text:
            self._texts.append(text)

    def _close(self, finish: Finish, error: Exception | None = None) -> None:
        assert self.finish is None, f"request {self.request.id} ended as {self.finish} and again as {finish}"
        self.finish = finish
        self._error = error
        self._metrics.ended(finish, monotonic() - self.request.timings.arrived)
        self._news.set()
