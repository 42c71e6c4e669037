"""The Refusal Head: logits = lm_head(h + eps * h W^T), per row (paper, 3.3).

The paper writes E + eps * E W for the output matrix E; `h (E + eps E W)^T = (h + eps h W^T) E^T`, so the d x d product
on the hidden state gives the same logits without rebuilding the V x d matrix at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RefusalHead(nn.Module):
    """A d x d matrix `W`, or a product of rank `rank`; it starts at 0, where it changes nothing."""

    def __init__(self, hidden_size: int, rank: int | None = None) -> None:
        super().__init__()
        self.rank = rank
        if rank is None:
            self.weight = nn.Parameter(torch.zeros(hidden_size, hidden_size))
        else:
            self.down = nn.Parameter(torch.randn(rank, hidden_size) / hidden_size**0.5)
            self.up = nn.Parameter(torch.zeros(hidden_size, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """`h W^T` `[..., d]` of hidden states `[..., d]`, in the dtype of `W`, whatever the backbone computes in."""
        if self.rank is None:
            return hidden.to(self.weight.dtype) @ self.weight.T
        return hidden.to(self.down.dtype) @ self.down.T @ self.up.T

    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        """`h + eps * h W^T`: hidden `[B, d]`, eps `[B]`. Rows with eps 0 come back bit for bit."""
        # A row of a masked matrix product may round differently with the number of rows: only `where` is exact.
        change = self(hidden)
        moved = hidden + (eps[:, None].to(change.dtype) * change).to(hidden.dtype)
        return torch.where(eps[:, None] != 0, moved, hidden)
