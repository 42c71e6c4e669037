"""Gives an engine up that has been silent for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOKS = 4  # in the time after which it is given up


async def watch(seconds: float, silent: Callable[[], bool], give_up: Callable[[], None]) -> None:
    """Call `give_up` whenever all looks of so many seconds, and one more, have found it `silent`; for ever.

    Only time in which the event loop came to look counts: what was told while something held the loop up has been
    heard by the next look.
    """
    looks = 0
    while True:
        await asyncio.sleep(seconds / LOOKS)
        looks = looks + 1 if silent() else 0
        if looks > LOOKS:
            give_up()
            looks = 0
