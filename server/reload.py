"""Reading the settings again while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from server.access.loosening import LooseningError, change_id
from server.service import Service
from server.settings.shown import differences
from server.settings.sources import ConfigError, Loaded
from server.watch.logs import LIFE
from steering.policy import PolicyError

logger = logging.getLogger(__name__)


async def reload(service: Service, load: Callable[[], Loaded]) -> None:
    """Put new settings in place of the old for requests to come; where they are wrong the old stay, and why is told."""
    try:
        before, loaded = service.settings, await asyncio.to_thread(load)
        kept = service.change(loaded.settings)
        service.origin = loaded.origin
    except Exception as error:
        service.metrics.reloaded(successful=False)
        if not isinstance(error, (ConfigError, PolicyError, LooseningError)):
            raise
        for problem in _problems(error):
            logger.error("the new settings are not used: %s", problem)  # noqa: TRY400  told in full
        return
    for name in kept:
        logger.warning("%s has changed, which has no effect until the server is started anew", name)
    changed = differences(before, service.settings)
    where = "" if loaded.file is None else f" from {loaded.file}"
    LIFE.info("the settings are read again%s; %s", where, "; ".join(changed) or "nothing has changed")
    service.metrics.reloaded(successful=True)


def _problems(error: ConfigError | PolicyError | LooseningError) -> Iterator[str]:
    match error:
        case ConfigError():
            yield from error.problems
        case LooseningError():
            for loss in error.losses:
                yield f"they would loosen what is in effect: {loss}"
            word = change_id(error.losses)
            yield f"if all of it is meant, write `loosens: {word}` for this change alone and reload, or start anew"
        case _:
            yield str(error)
