"""Waiting for what another process or thread does, where nothing can tell but asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT_SECONDS = 120.0  # for what has happened long before on an idle machine


def wait_until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Ask until it is so. Raises TimeoutError with `what` did not happen."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= until:
            raise TimeoutError(f"{what} did not happen in {seconds:.0f} s")
        time.sleep(0.02)  # what is waited for needs the cores


async def until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """As `wait_until`, while the event loop goes on."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            raise TimeoutError(f"{what} did not happen in {seconds:.0f} s")
        await asyncio.sleep(0.002)
