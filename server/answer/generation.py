"""One choice of an answer, seen from the event loop: engine events in, deltas out, exactly one end."""

from __future__ import annotations

from time import monotonic

from server.answer.delta import Delta, Kind, merged
from server.answer.pipeline import Pipeline
from server.answer.token_reads import TokenReads
from server.request import Event, Finish, Request
from server.watch.metrics import Metrics
from steering.policy import Fallback, Verdict

FAILURES = frozenset({Finish.ABORT, Finish.TIMEOUT, Finish.ERROR})  # ends that are no answer's


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
        self.begun = False  # from its first event on, the guard's decision is known
        self.refused = False  # from the guard's intervention on
        self.fallback: Fallback | None = None  # why the policy's refusal text stands for its answer, if it does
        self.ended = False
        self.finish: Finish | None = None  # how
        self.error: Exception | None = None
        self.kept: list[str] | None = [] if keep else None
        self.reads = TokenReads()  # where the request wants the scores of its tokens
        self._generated = 0  # tokens
        self._told_held = 0  # tokens, when something of it was last taken
        self._pipeline = pipeline
        self._metrics = metrics
        self._deltas: list[Delta] = []
        self._last_token: float | None = None

    def take(self) -> list[Delta]:
        """What has come since the last call; at most one delta of each kind in a row.

        Where the request wants the scores of its tokens, an empty one says that more is held back than before.
        """
        deltas, self._deltas = self._deltas, []
        if len(deltas) > 1:
            deltas = merged(deltas)
        if self.request.ask.scores:
            if not deltas and self.held != self._told_held and not self.ended:
                deltas = [Delta(Kind.TEXT, "")]
            self._told_held = self.held
        if self.kept is not None:
            self.kept += [delta.text for delta in deltas]
        return deltas

    def deliver(self, event: Event) -> None:
        """Take what one step of the engine did to it; a stop string may end it before the engine does."""
        if not self.begun:
            self._begin()
        if self.request.answer_scores:
            self.reads.read(self.request.answer_scores)
            self.request.answer_scores.clear()
        if event.token is None and event.finish is None:
            self._answer_decided()
            return
        # Where text is held back, the tokens up to a stop string are cleared by the event after it.
        stopped = self._pipeline.stopped
        if event.token is not None and not stopped:
            self._count()
            if self.request.ask.scores:
                self.reads.push(event.token)
            self._deltas += self._pipeline.push(event.token, event.logprobs)
        if event.finish is not None:
            self._finish(event.finish, event.error)
        elif self._pipeline.stopped and (stopped or not self._pipeline.holds):
            self._finish(Finish.STOP, None)
        elif self._pipeline.failed:
            self._fall_back(Fallback.NOT_BEGUN)

    @property
    def held(self) -> int:
        """Tokens whose text is held back until they are cleared."""
        return self._pipeline.held

    @property
    def tokens(self) -> int:
        """Generated tokens that are not held back, whether or not they have a text."""
        return self._generated - self.held

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._pipeline.stop_string

    def _finish(self, finish: Finish, error: Exception | None) -> None:
        answer = self.request.answer
        if finish in FAILURES:
            self._abandon(finish, error)
        elif finish is Finish.CONTENT_FILTER and answer is not None and answer.reason is not None:
            if not self.refused:
                self._metrics.answers.flagged(self.request.policy, self.tokens)
            self._fall_back(answer.reason)
        elif self._verdict is Verdict.BLOCKED:
            self._deltas += self._pipeline.say(self.request.policy.told)
            self.close(finish)
        elif self._pipeline.unrefused:
            self._fall_back(Fallback.NOT_BEGUN)
        else:
            self._deltas += self._pipeline.finish()
            self.close(Finish.STOP if self._pipeline.stopped else finish)

    def _abandon(self, finish: Finish, error: Exception | None) -> None:
        """It ends without an answer; what nobody has cleared is not shown."""
        if self._pipeline.holds:
            self._forget_held()
            self._deltas += self._pipeline.drop()
        else:
            self._deltas += self._pipeline.finish()
            if self._pipeline.stopped:
                finish, error = Finish.STOP, None
        self.close(finish, error)

    def _fall_back(self, reason: Fallback) -> None:
        """The policy's refusal text stands for what is not shown."""
        self._refuse()
        self._deltas += self._pipeline.say(self.request.policy.told)
        self.fallback = reason
        self.close(Finish.CONTENT_FILTER)

    def close(self, finish: Finish, error: Exception | None = None) -> None:
        """Give it its one end."""
        assert not self.ended, f"request {self.request.id} ended as {self.finish} and again as {finish}"
        self.ended = True
        self.finish = finish
        self.error = error
        request = self.request
        if finish in FAILURES or not request.max_tokens:
            return
        self._metrics.answers.ended(request.policy, request.answer, self.fallback)
        self._metrics.shadow_answered(request)

    @property
    def _verdict(self) -> Verdict | None:
        """What was decided on its prompt."""
        return None if self.request.decision is None else self.request.decision.verdict

    def _begin(self) -> None:
        self.begun = True
        if self.request.leader is None:
            self._metrics.decided(self.request)
        if self._verdict in (Verdict.STEERED, Verdict.BLOCKED):
            self._refuse()

    def _answer_decided(self) -> None:
        """The answer is flagged, and goes on."""
        answer = self.request.answer
        if answer is None:
            return
        self._metrics.answers.flagged(self.request.policy, self.tokens)
        if answer.verdict is Verdict.STEERED:
            self._refuse()

    def _refuse(self) -> None:
        """What comes from here on is a refusal."""
        self._forget_held()
        if not self.refused:
            self.refused = True
            self._deltas += self._pipeline.refuse()

    def _forget_held(self) -> None:
        """Of tokens that are dropped nothing is told."""
        if held := self.held:
            self._generated -= held
            self.reads.keep(self._generated)
            self._metrics.answers.dropped(self.request.policy, held)

    def _count(self) -> None:
        now = monotonic()
        self._metrics.token(self._last_token, now, self.request.timings.arrived)
        self._last_token = now
        self._generated += 1
