"""One choice of an answer, seen from the event loop: engine events in, deltas out, exactly one end."""

from __future__ import annotations

from time import monotonic

from server.answer.delta import Delta, merged
from server.answer.pipeline import Pipeline
from server.request import Event, Finish, Request
from server.watch.metrics import Metrics
from steering.policy import Verdict


class Generation:
    """One request's answer, from its first event to its `finish`. Only for the event loop's thread.

    Deltas wait here until they are taken. The request's `max_tokens` bounds them, whatever the speed of the reader.
    `keep`: whether `kept` holds the text that was taken.
    """

    def __init__(
        self, index: int, request: Request, pipeline: Pipeline, metrics: Metrics, *, keep: bool = False
    ) -> None:
        self.index = index
        self.request = request
        self.tokens = 0  # generated, whether or not their text is shown
        self.begun = False  # from its first event on, the guard's decision is known
        self.refused = False  # from the guard's intervention on
        self.ended = False
        self.finish: Finish | None = None  # how
        self.error: Exception | None = None
        self.kept: list[str] | None = [] if keep else None
        self._pipeline = pipeline
        self._metrics = metrics
        self._deltas: list[Delta] = []
        self._last_token: float | None = None

    def take(self) -> list[Delta]:
        """What has come since the last call; at most one delta of each kind in a row."""
        deltas, self._deltas = self._deltas, []
        if len(deltas) > 1:
            deltas = merged(deltas)
        if self.kept is not None:
            self.kept += [delta.text for delta in deltas]
        return deltas

    def deliver(self, event: Event) -> None:
        """Take what one step of the engine did to it; a stop string may end it before the engine does."""
        if not self.begun:
            self._begin()
        if event.token is not None:
            self._count()
            self._deltas += self._pipeline.push(event.token, event.logprobs)
        if event.finish is not None or self._pipeline.stopped:
            self._finish(event.finish, event.error)

    def _finish(self, finish: Finish | None, error: Exception | None) -> None:
        self._deltas += self._pipeline.finish()
        if self._pipeline.stopped:
            finish, error = Finish.STOP, None
        decision = self.request.decision
        if finish is Finish.CONTENT_FILTER and decision is not None and decision.verdict is Verdict.BLOCKED:
            self._deltas += self._pipeline.say(self.request.policy.refusal)
        assert finish is not None
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
        decision = self.request.decision
        if decision is not None and decision.verdict in (Verdict.STEERED, Verdict.BLOCKED):
            self.refused = True
            self._pipeline.refuse()

    def _count(self) -> None:
        now = monotonic()
        self._metrics.token(self._last_token, now, self.request.timings.arrived)
        self._last_token = now
        self.tokens += 1
