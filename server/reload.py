"""Reading the settings again while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from server.service import Service
from server.settings.sources import ConfigError, Loaded
from steering.policy import PolicyError

logger = logging.getLogger(__name__)


async def reload(service: Service, load: Callable[[], Loaded]) -> None:
    """Put new settings in place of the old for requests to come; where they are wrong the old stay, and why is told."""
    try:
        kept = service.change((await asyncio.to_thread(load)).settings)
    except (ConfigError, PolicyError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        for problem in problems:
            logger.error("the new settings are not used: %s", problem)  # noqa: TRY400  told in full
        service.metrics.reloads.labels("error").inc()
        return
    for name in kept:
        logger.warning("%s has changed, which has no effect until the server is started anew", name)
    logger.warning("the settings are read again")
    service.metrics.reloads.labels("ok").inc()
