"""A request as our own engine computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.request import Request

if TYPE_CHECKING:
    from models.backbone import Row
    from models.sampling import RowSampler


@dataclass(eq=False)
class OwnRequest(Request):
    """A request with its sampler and, while it runs, its row. `source`: its leader."""

    sampler: RowSampler = field(kw_only=True)
    source: OwnRequest | None = field(default=None, kw_only=True)
    row: Row | None = field(default=None, init=False)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.prompt.ids) + len(self.output_ids) if self.row is None else self.row.pending

    @property
    def decodes(self) -> bool:
        """Whether its row has the prompt, and lacks one token: a row's last token of a prompt is no such."""
        return self.row is not None and self.row.pending == 1 and self.row.length >= len(self.prompt.ids)

    @property
    def eps(self) -> float:
        """Steering strength of its row, 0 where it is not steered."""
        return self.decision.eps if self.decision else 0.0
