"""What was decided in the last hour, minute by minute, for whoever looks on without a metrics server."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from time import monotonic

MINUTES = 60


class RecentDecisions:
    """Counts of decisions by policy, in one bucket a minute. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._minutes: deque[tuple[int, Counter[tuple[str, str]]]] = deque()

    def add(self, policy: str, decision: str) -> None:
        """Count one more decision under a policy."""
        now = self._now()
        if not self._minutes or self._minutes[-1][0] != now:
            self._minutes.append((now, Counter()))
            self._forget(now)
        self._minutes[-1][1][policy, decision] += 1

    def of(self, policy: str) -> list[dict[str, int]]:
        """How often each decision came in each of the last `MINUTES` minutes, the current one last."""
        now = self._now()
        self._forget(now)
        found: list[dict[str, int]] = [{} for _ in range(MINUTES)]
        for minute, counts in self._minutes:
            place = MINUTES - 1 - (now - minute)
            found[place] = {decision: count for (name, decision), count in counts.items() if name == policy}
        return found

    def _now(self) -> int:
        return int(self._clock() // 60)

    def _forget(self, now: int) -> None:
        while self._minutes and self._minutes[0][0] <= now - MINUTES:
            self._minutes.popleft()
