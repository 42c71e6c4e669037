"""How fast requests end."""

from __future__ import annotations

from collections import deque
from math import ceil
from time import monotonic


class Pace:
    """How fast requests end, from the last of them. Only for the event loop's thread."""

    LONGEST = 60  # seconds; after more than that, waiting is no better than trying

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=64)

    def count(self) -> None:
        """A request has ended."""
        self._ends.append(monotonic())

    def seconds_for(self, requests: int) -> int:
        """When so many more will have ended, in whole seconds from 1 to LONGEST; 1 where nothing is known."""
        if not self._ends:
            return 1
        each = (monotonic() - self._ends[0]) / len(self._ends)
        return max(1, min(self.LONGEST, ceil(each * requests)))
