"""Cyclic garbage is looked for while few objects are alive, since that stops everything else.

A full collection walks through every container that lives, under the interpreter's lock. Python begins one when many
have been made: just while a body of 200,000 values is being read, where it takes 40 to 70 ms. After one, memory that is
free between blocks in use goes back to the system.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from time import monotonic

from server.workers.memory import return_free_pages

NEVER = 2**30  # collections of the middle generation until Python would begin a full one
PAUSE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # in which garbage may wait for a quiet moment
FEW_BLOCKS = 50_000  # of memory, above what there was after the last full collection


class FullCollections:
    """Begins full collections in Python's place. For the event loop's thread."""

    def __init__(self) -> None:
        self._last = 0.0  # when one ended, and the blocks of memory that were in use then
        self._blocks = 0
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Once all libraries are imported: their objects never become garbage, and are walked through no more."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, NEVER)
        self._note()
        self._task = asyncio.create_task(self._run())

    def is_due(self) -> bool:
        """Whether there may be garbage, and to look for it costs little or has waited for long."""
        if gc.get_count()[2] == 0:
            return False
        few = sys.getallocatedblocks() <= self._blocks + FEW_BLOCKS
        return few or monotonic() - self._last >= PATIENCE_SECONDS

    def collect(self) -> None:
        """Look for garbage now."""
        gc.collect()
        self._note()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            if self.is_due():
                self.collect()
                await asyncio.to_thread(return_free_pages)  # without the lock, which the event loop needs

    def _note(self) -> None:
        self._last, self._blocks = monotonic(), sys.getallocatedblocks()
