"""Threads for one kind of work each, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from server.workers.turns import Turns

T = TypeVar("T")


@dataclass(frozen=True)
class _Piece:
    """One piece of work, who waits for it, and when it came."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    came: float = field(default_factory=monotonic)

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001  it is the caller's
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Lane:
    """`count` threads that take up work: that of one key in the order in which it comes, the keys in turns.

    Unlike the standard pool's, they do not hold up the end of the process, and tell whether they get on.
    """

    def __init__(self, count: int, name: str) -> None:
        self.name = name
        self._turns: Turns[_Piece] = Turns()
        self._changed = threading.Condition()
        self._closed = False
        self._taken = monotonic()
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    async def run(self, work: Callable[[], T], key: Hashable = None) -> T:
        """What `work` returns or raises in one of the threads. Work whose caller has gone is not begun."""
        return await asyncio.wrap_future(self.submit(work, key))

    def submit(self, work: Callable[[], T], key: Hashable = None) -> Future[T]:
        """Work to be done for a key, for any thread."""
        piece = _Piece(work)
        with self._changed:
            self._turns.put(key, piece)
            self._changed.notify()
        return piece.future

    def waiting(self, key: Hashable) -> int:
        """How much work of a key has not been taken up."""
        with self._changed:
            return self._turns.waiting(key)

    @property
    def stalled(self) -> float:
        """Seconds for which no work has been taken up while some waits."""
        with self._changed:
            oldest = min((piece.came for piece in self._turns.heads()), default=None)
            return 0.0 if oldest is None else max(0.0, monotonic() - max(oldest, self._taken))

    def close(self) -> None:
        """Let the threads end when nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (piece := self._next()) is not None:
            piece.do()
            del piece  # what it holds is not kept until the next one comes

    def _next(self) -> _Piece | None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._turns) or self._closed)
            if not self._turns:
                return None
            self._taken = monotonic()
            return self._turns.take()
