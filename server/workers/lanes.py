"""Threads for one kind of work each, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """`count` threads that take up work in the order in which it comes.

    Unlike the standard pool's, they do not hold up the end of the process, and tell whether they get on.
    """

    def __init__(self, count: int, name: str) -> None:
        self.name = name
        self._count = count
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._waiting: deque[float] = deque()  # when what waits has come
        self._taken = monotonic()
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises in one of the threads. Work whose caller has gone is not begun."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Work to be done, for any thread."""
        future: Future[T] = Future()
        self._waiting.append(monotonic())
        self._queue.put((future, work))
        return future

    @property
    def waiting(self) -> int:
        """How much work has not been taken up."""
        return len(self._waiting)

    @property
    def stalled(self) -> float:
        """Seconds for which no work has been taken up while some waits."""
        try:
            oldest = self._waiting[0]
        except IndexError:
            return 0.0
        return max(0.0, monotonic() - max(oldest, self._taken))

    def close(self) -> None:
        """Let each thread end after what was given to it before."""
        for _ in range(self._count):
            self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._waiting.popleft()
            self._taken = monotonic()
            _finish(*item)
            del item  # what it holds is not kept until the next one comes


def _finish(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)
