"""When an engine that has failed is started again, and when that is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

# Before each start in a row: a crash that repeats costs little, a single one no time.
SECONDS = (0.0, 2.0, 5.0, 15.0, 60.0)
STEADY_SECONDS = 600.0  # that an engine must have served for an earlier failure not to count any more


class Restarts:
    """Counts failures in a row, and how often an engine was started again. Only for one thread."""

    def __init__(self, seconds: Sequence[float] = SECONDS, clock: Callable[[], float] = monotonic) -> None:
        self.count = 0
        self._seconds = seconds
        self._clock = clock
        self._failures = 0  # in a row
        self._serving_since: float | None = None

    def served(self) -> None:
        """An engine is ready."""
        self._serving_since = self._clock()

    def wait(self) -> float | None:
        """An engine has failed: the seconds until the next start; None where there is to be none any more."""
        if self._serving_since is not None and self._clock() - self._serving_since >= STEADY_SECONDS:
            self._failures = 0
        self._serving_since = None
        self._failures += 1
        if self._failures > len(self._seconds):
            return None
        self.count += 1
        return self._seconds[self._failures - 1]
