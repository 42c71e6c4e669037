"""The Refusal Head as the paper writes it (section 3.3): the output matrix itself is changed, for one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def steered_logits(hidden: Tensor, embedding: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Logits `[B, V]` of `hidden` `[B, d]` with `E + eps E W` built out for each row; `E` `[V, d]`, `W` `[d, d]`."""
    rows = [h @ (embedding + e * embedding @ weight).T for h, e in zip(hidden, eps, strict=True)]
    return torch.stack(rows)
