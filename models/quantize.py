"""Weights in 8 bits, for a CPU: a decoder's step reads half of what it reads in bf16.

Each output channel has a scale; activations stay as they are. What it changes in a model's outputs is measured by
`python -m benchmarks --only quantize`, and is for the user to judge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.fused import change_linears

_FEW_ROWS = 8  # beyond them the product in bf16 is faster, with the weight made bf16 for the moment


class Int8Linear(nn.Module):
    """A linear map whose weight is `int8 * scale`, a scale for each output."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = weight.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.bfloat16))
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`, bf16."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) <= _FEW_ROWS:
            output = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            output = linear(rows, self.weight.to(rows.dtype)) * self.scale
        if self.bias is not None:
            output += self.bias
        return output.view(*inputs.shape[:-1], -1)


@torch.no_grad()
def quantize_decoder(decoder: Any) -> None:  # noqa: ANN401 - a transformers decoder in bf16 on the CPU
    """Change every linear map of the decoder's layers; embeddings, norms and head stay."""
    change_linears(decoder, lambda linear: Int8Linear(linear.weight, linear.bias))
