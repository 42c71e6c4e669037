"""A limit on log lines that strangers can cause: without a key, a line for each broken request would fill a disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from time import monotonic

# Of these, what a request does before it is known who asks.
STRANGERS = ("uvicorn.error", "asyncio", "server.http.connections")

Later = Callable[[float, Callable[[], None]], object]


@dataclass
class _Window:
    """The lines of one place in the code, since the first of them."""

    end: float
    lines: int = 0
    left_out: int = 0


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


class LimitedLines(logging.Filter):
    """Lets `lines` of each place in the code through per `seconds`, and then tells how many it left out.

    Only of the loggers in `names`. A place is a file and a line, so that what is kept is bounded by the code.
    """

    def __init__(
        self,
        names: Collection[str] = STRANGERS,
        *,
        lines: int = 10,
        seconds: float = 60.0,
        clock: Callable[[], float] = monotonic,
        later: Later = _later,
    ) -> None:
        super().__init__()
        self._names = frozenset(names)
        self._lines, self._seconds = lines, seconds
        self._clock, self._later = clock, later
        self._windows: dict[tuple[str, int], _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.name not in self._names or getattr(record, "left_out", False):
            return True
        place, now = (record.pathname, record.lineno), self._clock()
        with self._lock:
            window = self._windows.get(place)
            if window is None or now >= window.end:
                window = self._windows[place] = _Window(now + self._seconds)
            window.lines += 1
            if window.lines <= self._lines:
                return True
            window.left_out += 1
            first = window.left_out == 1
        if first:
            self._later(window.end - now, partial(self._tell, window, record.name, record.getMessage()))
        return False

    def _tell(self, window: _Window, name: str, like: str) -> None:
        with self._lock:
            left_out = window.left_out
        logging.getLogger(name).warning(
            "%d more lines like the last of these were left out: %s", left_out, like, extra={"left_out": True}
        )
