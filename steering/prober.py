"""The prober: a small network that reads one layer's state and scores how likely the answer is harmful (paper, 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 64


class Prober(nn.Module):
    """d -> 64 -> 1, or d -> 1 where `hidden` is 0, on a raw state; standardisation is folded into the first layer.

    `temperature` divides the logit, so that the score is calibrated. Always computed in fp32.
    """

    temperature: Tensor

    def __init__(self, hidden_size: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(hidden_size, hidden or 1)
        self.second: nn.Module = nn.Linear(hidden, 1) if hidden else nn.Identity()
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, states: Tensor) -> Tensor:
        """Logits `[B]` of states `[B, d]`, before the temperature."""
        inner = self.first(states.float())
        logits: Tensor = self.second(inner.relu() if self.hidden else inner)
        return logits[:, 0]

    def score(self, states: Tensor) -> Tensor:
        """Scores `[B]` in [0, 1] of states `[B, d]`; 1 is toxic."""
        return torch.sigmoid(self(states) / self.temperature)

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: Tensor) -> None:
        """Make a prober that was fitted on `(x - mean) / scale` read `x` itself. `mean`, `scale` `[d]`."""
        self.first.bias.sub_(self.first.weight @ (mean / scale))
        self.first.weight.div_(scale)
