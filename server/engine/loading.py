"""The half of a model that the HTTP process loads itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

from server.engine.host import Inputs

logger = logging.getLogger(__name__)


def load_in_thread(
    load: Callable[[], Inputs], loaded: Callable[[Inputs], None], failed: Callable[[BaseException], None]
) -> None:
    """Call `load` in a thread, and then one of the others on the running event loop with what came of it."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            inputs = load()
        except BaseException as error:  # noqa: BLE001  told to those who wait
            report = partial(failed, error)
        else:
            report = partial(loaded, inputs)
        try:
            loop.call_soon_threadsafe(report)
        except RuntimeError:
            logger.debug("the event loop has ended before the tokenizer was read")

    threading.Thread(target=run, name="inputs", daemon=True).start()
