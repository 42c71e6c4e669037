"""What a pass of our own engine found, of some of its requests or of several passes as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from server.engine.own_request import OwnRequest


@dataclass
class Computed:
    """What a pass found: requests, and the hidden states `[B, d]` of their last tokens."""

    requests: list[OwnRequest]
    hidden: Tensor
    read: Tensor | None = None  # what was read of these tokens `[B, width]`; None where none was to be

    def of(self, kept: Sequence[bool]) -> Computed:
        """What the pass found of some of the requests."""
        if all(kept):
            return self
        places = torch.tensor([*compress(range(len(kept)), kept)], dtype=torch.long, device=self.hidden.device)
        read = None if self.read is None else self.read[places]
        return Computed(list(compress(self.requests, kept)), self.hidden[places], read)

    @staticmethod
    def joined(parts: Sequence[Computed]) -> Computed:
        """What several passes found, one after the other, as one."""
        requests = [request for part in parts for request in part.requests]
        read = None
        if any(part.read is not None for part in parts):
            width = max(part.read.shape[1] for part in parts if part.read is not None)
            nothing = parts[0].hidden.new_full((1, width), torch.nan)  # of a row alone
            read = torch.cat([nothing if part.read is None else part.read for part in parts])
        return Computed(requests, torch.cat([part.hidden for part in parts]), read)
