"""The requests that the HTTP process has submitted and that have not ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.pace import Pace
from server.engine.wire import Step, Update
from server.request import EngineFailed, Event, Finish, Request

logger = logging.getLogger(__name__)

Deliver = Callable[[Sequence[Event]], None]


class NotReady(Exception):
    """The engine is still loading, has failed, or is shutting down."""


class QueueFull(Exception):
    """Too many live requests; `retry_after` in seconds is the server's guess at when to come back."""

    def __init__(self, live: int, limit: int, retry_after: int) -> None:
        super().__init__(f"{live} requests are running or waiting, the limit is {limit}")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Live:
    request: Request
    deliver: Deliver


class LiveRequests:
    """Requests by the numbers that stand for them on the wire, and whom their events go to.

    Each ends in exactly one event with `finish`; nothing is heard of it after that. Only for the event loop's thread.
    """

    def __init__(self) -> None:
        self.quiet = asyncio.Event()  # set while there is none
        self.quiet.set()
        self.pace = Pace()
        self._next = 0  # number of the next request
        self._live: dict[int, _Live] = {}
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._numbers

    def add(self, requests: Sequence[Request], deliver: Deliver) -> int:
        """The number of the first of these requests; the others follow it."""
        first = self._next
        for number, request in enumerate(requests, first):
            assert request.id not in self._numbers, f"request id {request.id} is live already"
            self._live[number] = _Live(request, deliver)
            self._numbers[request.id] = number
        self._next += len(requests)
        self.quiet.clear()
        return first

    def take(self, step: Step) -> None:
        """Hand each request what a step did to it."""
        for number, token in step.tokens:
            if (live := self._live.get(number)) is not None:
                live.request.output_ids.append(token)
                _hand(live, Event(live.request, token))
        for update in step.updates:
            if (live := self._live.get(update.number)) is not None:
                self._update(live, update)

    def end_all(self, finish: Finish, error: EngineFailed | None) -> None:
        """End what lives without the engine."""
        for number, live in list(self._live.items()):
            self._forget(number)
            _hand(live, Event(live.request, finish=finish, error=error))

    def _update(self, live: _Live, update: Update) -> None:
        request = live.request
        if update.state is not None:
            for name, value in update.state._asdict().items():
                setattr(request, name, value)
        request.answer_scores += update.scores
        if update.token is not None:
            request.output_ids.append(update.token)
        if update.finish is not None:
            self._forget(update.number)
        _hand(live, Event(request, update.token, update.logprobs, update.finish, update.error))

    def _forget(self, number: int) -> None:
        del self._numbers[self._live.pop(number).request.id]
        self.pace.count()
        if not self._live:
            self.quiet.set()


def _hand(live: _Live, event: Event) -> None:
    try:
        live.deliver([event])
    except Exception:
        logger.exception("delivering an event of request %s failed", event.request.id)
