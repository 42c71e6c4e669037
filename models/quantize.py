"""Weights in 8 bits, for a CPU: a decoder's step reads half of what it reads in bf16, a quarter of fp32.

Each output channel has a scale; activations stay as they are. What it changes in a model's outputs is measured by
`python -m benchmarks --only quantize`, and is for the user to judge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.cpu import CpuCapabilities, int8_product
from models.fused import change_linears

_FEW_ROWS = 8  # beyond them the plain product is faster, with the weight in the inputs' dtype for the moment


class Int8Linear(nn.Module):
    """A linear map whose weight is `int8 * scale`, a scale for each output.

    `fused`: whether few rows are multiplied without a copy of the weight, see `CpuCapabilities.int8_products`.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, *, fused: bool) -> None:
        super().__init__()
        self._fused_rows = _FEW_ROWS if fused else 0
        scale = weight.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`, in the dtype of the weight that it was made of."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) <= self._fused_rows:
            output = int8_product(rows, self.weight, self.scale)
        else:
            output = linear(rows, self.weight.to(rows.dtype)) * self.scale
        if self.bias is not None:
            output += self.bias
        return output.view(*inputs.shape[:-1], -1)


@torch.no_grad()
def quantize_decoder(decoder: Any, cpu: CpuCapabilities) -> None:  # noqa: ANN401 - a transformers decoder on the CPU
    """Change every linear map of the decoder's layers; embeddings, norms and head stay."""
    change_linears(decoder, lambda linear: Int8Linear(linear.weight, linear.bias, fused=cpu.int8_products))
