"""The reviews that the console's pages ask for, in threads: the audit log and its labels are on a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from server.errors import NotFound, ServerFault
from server.record.audit.sink import SinkError
from server.review.beside import store_beside
from server.review.store import ReviewStore
from server.settings.groups import AuditSettings

T = TypeVar("T")


class Reviews:
    """The reviews of a server's audit log."""

    def __init__(self, audit: AuditSettings | None) -> None:
        self._store = None if audit is None else store_beside(audit)
        # Two threads at most, or those who review could take all that others wait for.
        self._counting, self._looking = asyncio.Lock(), asyncio.Lock()

    async def ask(self, work: Callable[[ReviewStore], T], *, long: bool = False) -> T:
        """What a function makes of them, when it is its turn; `long`: it takes the log in first.

        Raises NotFound where there are none, ServerFault where they cannot be read.
        """
        if self._store is None:
            raise NotFound("Nothing is reviewed here: there is no audit log.", code="no_reviews")
        try:
            async with self._counting if long else self._looking:
                return await asyncio.to_thread(work, self._store)
        except (SinkError, OSError) as error:
            raise ServerFault(f"The audit log cannot be read: {error}.", code="audit_unreadable") from error
