"""A request as our own engine computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.engine.judged import JudgedRequest

if TYPE_CHECKING:
    from torch import Tensor

    from models.backbone import Row
    from models.row_sampler import RowSampler


@dataclass(eq=False)
class OwnRequest(JudgedRequest):
    """A request with its sampler and, while it runs, its row.

    Followers wait for their source to compute the prompt, and begin with copies of its blocks.
    """

    sampler: RowSampler = field(kw_only=True)
    row: Row | None = field(default=None, init=False)
    turn: int = field(default=0, init=False)  # prompt tokens that the engine had computed when this came
    states: list[Tensor] | None = field(default=None, init=False)  # of its prompt, until its log-probabilities are told

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states = None if self.ask.prompt_logprobs is None else []

    def be_refused(self) -> None:
        """Make the answer a refusal."""
        self.sampler = self.sampler.steered()

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.prompt.ids) + len(self.output_ids) if self.row is None else self.row.pending

    @property
    def position(self) -> int:
        """Tokens that its row has computed, before those to come."""
        return 0 if self.row is None else self.row.length

    @property
    def lacking(self) -> int:
        """Tokens to compute before its next one, as far as one knows before it runs."""
        copies = self.row is None and self.source is not None and self.source.has_prompt
        return 1 if copies else self.pending

    @property
    def decodes(self) -> bool:
        """Whether its row has all of the prompt and lacks one later token."""
        return self.has_prompt and self.pending == 1

    @property
    def has_prompt(self) -> bool:
        """Whether its row has all of the prompt."""
        return self.row is not None and self.row.length >= len(self.prompt.ids)

    @property
    def waits(self) -> bool:
        """Whether another request computes its prompt, so that it must not."""
        return self.source is not None and self.cached_tokens is None and not self.source.has_prompt
