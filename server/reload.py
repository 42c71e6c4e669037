"""Reading the settings again while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from server.access.loosening import LooseningError, change_id
from server.service import Service
from server.settings.sources import ConfigError, Loaded
from steering.policy import PolicyError

logger = logging.getLogger(__name__)


async def reload(service: Service, load: Callable[[], Loaded]) -> None:
    """Put new settings in place of the old for requests to come; where they are wrong the old stay, and why is told."""
    try:
        kept = service.change((await asyncio.to_thread(load)).settings)
    except Exception as error:
        service.metrics.reloads.labels("error").inc()
        if not isinstance(error, (ConfigError, PolicyError, LooseningError)):
            raise
        for problem in _problems(error):
            logger.error("the new settings are not used: %s", problem)  # noqa: TRY400  told in full
        return
    for name in kept:
        logger.warning("%s has changed, which has no effect until the server is started anew", name)
    logger.warning("the settings are read again")
    service.metrics.reloads.labels("ok").inc()


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
