"""Limits of a process that the system holds it to."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as the system allows it to."""
    limit_this_process(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit_this_process(kind: int, value: int) -> None:
    """Set a limit, `resource.RLIMIT_...`, where the system takes it: macOS has no RLIMIT_AS, and no endless NOFILE."""
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError) as error:
        logger.debug("limit %d stays as it is: %s", kind, error)
