"""Limits of a process that the system holds it to."""

from __future__ import annotations

import logging
import resource

from server.workers.memory import address_space

logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as the system allows it to."""
    limit_this_process(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit_memory(more_bytes: int) -> None:
    """Let this process have so much memory above what it has, where the system tells of that."""
    if (held := address_space()) is not None:
        limit_this_process(resource.RLIMIT_AS, held + more_bytes)


def limit_this_process(kind: int, value: int) -> None:
    """Set a limit, `resource.RLIMIT_...`, where the system takes it: macOS has no RLIMIT_AS, and no endless NOFILE."""
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError) as error:
        logger.debug("limit %d stays as it is: %s", kind, error)
