"""One choice of an answer, seen from the event loop: engine events in, text out, exactly one end."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from server.answer.detokenizer import Detokenizer, TextDecoder
from server.answer.logprobs import Entry, LogprobsInStep
from server.request import Event, Finish, Request
from server.watch.metrics import Metrics
from steering.policy import Verdict


class Piece(NamedTuple):
    """What has come of a choice: text, and the tokens that ended within it, where they are asked for."""

    text: str
    entries: list[Entry]


class Generation:
    """One request's text, from its first event to its `finish`. Only for the event loop's thread.

    Text waits here until it is fetched. The request's `max_tokens` bounds it, whatever the speed of the reader.
    """

    def __init__(
        self, index: int, request: Request, decoder: TextDecoder, stops: Sequence[str], metrics: Metrics
    ) -> None:
        self.index = index
        self.request = request
        self.tokens = 0  # generated, whether or not their text is shown
        self.begun = False  # from its first event on, the guard's decision is known
        self.ended = False
        self.finish: Finish | None = None  # how
        self.error: Exception | None = None
        self.said: list[str] = []  # the text that was taken, in pieces
        self._decoder = decoder
        self._detokenizer = Detokenizer(decoder, stops)
        self._metrics = metrics
        self._logprobs = None
        if request.sampler.params.logprobs is not None:
            self._logprobs = LogprobsInStep(decoder)
        self._texts: list[str] = []
        self._entries: list[Entry] = []
        self._last_token: float | None = None

    @property
    def flagged(self) -> bool:
        """Whether the guard changed this answer."""
        decision = self.request.decision
        return decision is not None and decision.verdict in (Verdict.STEERED, Verdict.BLOCKED)

    def take(self) -> Piece:
        """What has come since the last call."""
        piece = Piece("".join(self._texts), self._entries)
        self._texts, self._entries = [], []
        self.said.append(piece.text)
        return piece

    def deliver(self, event: Event) -> None:
        """Take what one step of the engine did to it; a stop string may end it before the engine does."""
        if not self.begun:
            self._begin()
        if event.token is not None:
            self._count()
            if self._logprobs is not None and event.logprobs is not None:
                self._logprobs.push(event.token, event.logprobs)
            self._add(self._detokenizer.push(event.token))
        if self._detokenizer.stopped:
            self._finish(Finish.STOP)
        elif event.finish is not None:
            self._add(self._detokenizer.finish())
            self._finish(Finish.STOP if self._detokenizer.stopped else event.finish, event.error)

    def _finish(self, finish: Finish, error: Exception | None = None) -> None:
        decision = self.request.decision
        if finish is Finish.CONTENT_FILTER and decision is not None and decision.verdict is Verdict.BLOCKED:
            self._texts.append(self.request.policy.refusal)
        if self._logprobs is not None:
            self._entries += self._logprobs.finish()
        self.close(finish, error)

    def close(self, finish: Finish, error: Exception | None = None) -> None:
        """Give it its one end."""
        assert not self.ended, f"request {self.request.id} ended as {self.finish} and again as {finish}"
        self.ended = True
        self.finish = finish
        self.error = error

    def _begin(self) -> None:
        self.begun = True
        if self.request.leader is None:
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
            if self._logprobs is not None:
                self._entries += self._logprobs.release(text)
