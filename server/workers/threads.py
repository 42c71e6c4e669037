"""The worker threads of one server."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from server.workers.lanes import Lane

LOCK_SECONDS = 0.0002


def share_the_lock() -> None:
    """Have threads that compute give up the interpreter's lock sooner than after Python's 5 ms, for the event loop.

    It takes the lock anew for each socket that is ready: beside one such thread 40 of them took 110 ms in one turn.
    """
    sys.setswitchinterval(LOCK_SECONDS)


class Threads:
    """`count` threads that prepare texts, as many for requests with images, and one for large bodies.

    So no text waits for images, and the bodies are parsed one at a time.
    """

    def __init__(self, count: int) -> None:
        self.texts = Lane(count, "prepare")
        self.images = Lane(count, "images")
        self.bodies = ThreadPoolExecutor(1, thread_name_prefix="parse")

    def start(self) -> None:
        """Begin the thread for bodies now, not within a load; the others are there."""
        self.bodies.submit(int)

    def close(self) -> None:
        """Let the threads end when nothing waits any more; bodies that wait are given up."""
        self.texts.close()
        self.images.close()
        self.bodies.shutdown(wait=False, cancel_futures=True)
