"""A request as far as decisions on it go, whichever engine computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.request import Request

if TYPE_CHECKING:
    from steering.answers import Watch


@dataclass(eq=False)
class JudgedRequest(Request):
    """A request that a `Judge` decides on.

    `watch`: from its decision on, where its answer is watched; `shadow_watch`: while a shadow watches it.
    """

    watch: Watch | None = field(default=None, init=False)
    shadow_watch: Watch | None = field(default=None, init=False)

    def be_refused(self) -> None:
        """Its answer is to be a refusal: greedy, and free of what the client asked of the sampler."""
        raise NotImplementedError
