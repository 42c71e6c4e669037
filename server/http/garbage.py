"""Cyclic garbage is looked for while few objects are alive, since that stops everything else.

A full collection walks through every container that lives, under the interpreter's lock. Python begins one when many
have been made: just while a body of 200,000 values is being read, where it takes 40 to 70 ms. While few are alive,
memory that is free between blocks in use goes back to the system too.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque

from server.workers.memory import return_free_pages

NEVER = 2**30  # collections of the middle generation until Python would begin a full one
PAUSE_SECONDS = 2.0  # between two looks
LOOKS = 5  # that are remembered: so long may garbage wait for a quiet moment
FEW_BLOCKS = 50_000  # of memory, above the fewest that were in use at one of them


class FullCollections:
    """Begins full collections in Python's place. For the event loop's thread."""

    def __init__(self) -> None:
        self._blocks: deque[int] = deque(maxlen=LOOKS)  # of memory, in use at each look
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start, once all libraries are imported: their objects never become garbage, and no collection visits them."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, NEVER)
        self._blocks.append(sys.getallocatedblocks())
        self._task = asyncio.create_task(self._run())

    def is_quiet(self) -> bool:
        """Whether few objects are alive: hardly more memory is in use than at the quietest of the latest looks."""
        self._blocks.append(sys.getallocatedblocks())
        return self._blocks[-1] <= min(self._blocks) + FEW_BLOCKS

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            if self.is_quiet():
                if gc.get_count()[2] > 0:  # or there can hardly be any
                    gc.collect()
                await asyncio.to_thread(return_free_pages)  # without the lock, which the event loop needs
