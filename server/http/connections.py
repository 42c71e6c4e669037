"""How many connections are open, bounded below the system's limit of descriptors; idle ones make room for new ones."""

from __future__ import annotations

import logging
import resource
from typing import Protocol

logger = logging.getLogger(__name__)

KEPT_DESCRIPTORS = 64  # for pipes, logs, databases, the engine, fetches of images
MOST_DESCRIPTORS = 2**20  # that are counted on, where the system says that there is no limit


class Connection(Protocol):
    """What is needed of a connection."""

    def make_room(self) -> None:
        """Close at once."""


def connections_within(descriptors: int) -> int:
    """How many connections so many descriptors allow: each may have an image, which is a descriptor too."""
    return max(1, (descriptors - KEPT_DESCRIPTORS) // 2)


def most_connections(wanted: int | None) -> int:
    """How many connections are taken: as many as are wanted, and no more than this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    within = connections_within(MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft)
    return within if wanted is None else min(wanted, within)


class Connections:
    """The open connections of one server, `limit` at most. Only for the event loop's thread.

    Idle is one on which no request is answered: none has come, head or body are not complete, or its answer was sent.
    Who has been so for longest makes room, whatever bytes it sends.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they became so

    def opened(self, connection: Connection) -> bool:
        """Count one more, which is idle; False where all others are at work, and it must be closed."""
        while len(self._open) >= self.limit:
            longest = next(iter(self._idle), None)
            if longest is None:
                logger.warning("%d connections are at work, the limit; a new one is refused", len(self._open))
                return False
            logger.warning("%d connections are open, the limit; the longest idle one is closed", len(self._open))
            self.closed(longest)
            longest.make_room()
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def begun(self, connection: Connection) -> None:
        """Count a connection on which a head has come as idle from now on: its body may be to come."""
        if self._idle.pop(connection, self) is None:
            self._idle[connection] = None

    def at_work(self, connection: Connection) -> None:
        """Count a connection as no longer idle: a request of it is being answered."""
        self._idle.pop(connection, None)

    def at_rest(self, connection: Connection) -> None:
        """Count a connection as idle: its requests are answered."""
        if connection in self._open:
            self._idle.setdefault(connection)

    def closed(self, connection: Connection) -> None:
        """Forget a connection that is no longer open."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
