"""A request as our own engine computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.engine.judged import JudgedRequest

if TYPE_CHECKING:
    from models.backbone import Row
    from models.row_sampler import RowSampler


@dataclass(eq=False)
class OwnRequest(JudgedRequest):
    """A request with its sampler and, while it runs, its row.

    `source`: the first request of the same prompt, while that lives. Its `followers` have not begun: they wait for it
    to compute the prompt, have its decision, and begin with copies of its blocks.
    """

    sampler: RowSampler = field(kw_only=True)
    source: OwnRequest | None = field(default=None, kw_only=True)
    followers: list[OwnRequest] = field(default_factory=list, init=False)
    row: Row | None = field(default=None, init=False)
    bent: float = field(default=0.0, init=False)  # strength of steering since its answer was flagged
    kept: int = field(default=0, init=False)  # tokens of the flagged answer that have been shown
    turn: int = field(default=0, init=False)  # prompt tokens that the engine had computed when this came

    def be_refused(self) -> None:
        """Its answer is to be a refusal."""
        self.sampler = self.sampler.steered()

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.prompt.ids) + len(self.output_ids) if self.row is None else self.row.pending

    @property
    def lacking(self) -> int:
        """Tokens to compute before its next one, as far as one knows before it runs."""
        copies = self.row is None and self.source is not None and self.source.has_prompt
        return 1 if copies else self.pending

    @property
    def decodes(self) -> bool:
        """Whether its row has the prompt, and lacks one token: a row's last token of a prompt is no such."""
        return self.has_prompt and self.pending == 1

    @property
    def has_prompt(self) -> bool:
        """Whether its row has all of the prompt."""
        return self.row is not None and self.row.length >= len(self.prompt.ids)

    @property
    def waits(self) -> bool:
        """Whether another computes its prompt, so that it must not."""
        return self.source is not None and self.cached_tokens is None and not self.source.has_prompt

    def leave(self) -> OwnRequest | None:
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
        """Steering strength of its row, 0 where it is not steered."""
        return self.bent or (self.decision.eps if self.decision else 0.0)

    @property
    def room(self) -> int:
        """How many tokens it may still have."""
        return self.max_tokens - self.kept - len(self.output_ids)
