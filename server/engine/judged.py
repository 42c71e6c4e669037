"""A request as far as decisions on it go, whichever engine computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from server.request import Request

if TYPE_CHECKING:
    from steering.answers import Watch


@dataclass(eq=False)
class JudgedRequest(Request):
    """A request that a `Judge` decides on.

    `watch`: from its decision on, where its answer is watched; `shadow_watch`: while a shadow watches it. `source`: the
    first request of the same prompt, while that lives. Its `followers` have not begun: they wait for its decision,
    which holds for them too.
    """

    source: Self | None = field(default=None, kw_only=True)
    followers: list[Self] = field(default_factory=list, init=False)
    watch: Watch | None = field(default=None, init=False)
    shadow_watch: Watch | None = field(default=None, init=False)
    bent: float = field(default=0.0, init=False)  # strength of steering since its answer was flagged
    kept: int = field(default=0, init=False)  # tokens of the flagged answer that have been shown

    def be_refused(self) -> None:
        """Make the answer a refusal: greedy, and free of what the client asked of the sampler."""
        raise NotImplementedError

    def leave(self) -> Self | None:
        """Follow and lead no more: the first of its followers leads the others then; None if there is none."""
        if self.source is not None and self in self.source.followers:
            self.source.followers.remove(self)
        if not self.followers:
            return None
        heir, *others = self.followers
        self.followers, heir.source, heir.followers = [], None, others
        for each in others:
            each.source = heir
        return heir

    @property
    def eps(self) -> float:
        """Steering strength of the request's row, 0 where it is not steered."""
        return self.bent or (self.decision.eps if self.decision else 0.0)

    @property
    def room(self) -> int:
        """How many tokens the answer may still have."""
        return self.max_tokens - self.kept - len(self.output_ids)
