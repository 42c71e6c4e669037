"""Which keys were used, and when last, over one audit log or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Used:
    """How many requests there were, and when the first and the last came (UTC)."""

    requests: int
    first: datetime
    last: datetime

    def __add__(self, other: Used) -> Used:
        return Used(self.requests + other.requests, min(self.first, other.first), max(self.last, other.last))


Usage = dict[str | None, Used]  # by the key's name; None: requests without a known key


def joined(uses: Iterable[tuple[str | None, Used]]) -> Usage:
    """The use of every key; a name may come any number of times."""
    usage: Usage = {}
    for name, used in uses:
        usage[name] = usage[name] + used if name in usage else used
    return usage
