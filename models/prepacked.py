"""Weights in the layout that a CPU's matrix products read.

A product of a plain weight sorts it into that layout first, at every call: of few rows that takes as long as the
product itself. Sorted once, it has the same result sooner: `python -m benchmarks --only products`.

Of few rows in bf16 a kernel of ours reads the sorted weight where it lies: a product then takes as long as reading its
weight does, where oneDNN's, which is made for many rows, takes up to twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.cpu import CpuCapabilities, pack, pairs_of, product_of_packed
from models.fused import Joined, change_linears
from models.operations import FEW_ROWS, few_rows

SMALL_FP32 = 2**18  # numbers; products of smaller weights in fp32 are faster in another library, which reads plain ones


class PrepackedLinear(nn.Module):
    """A linear map whose weight is in oneDNN's own layout; it can be used, but neither trained, moved nor saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self._packed = pack(weight)
        self._few_rows = _of_few_rows(self._packed, weight, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        if inputs.requires_grad and torch.is_grad_enabled():
            output: Tensor = _Differentiable.apply(inputs, self._packed, self.bias)  # type: ignore[no-untyped-call]
            return output
        if self._few_rows is not None and 0 < inputs.numel() <= FEW_ROWS * inputs.shape[-1]:
            return self._few_rows(inputs)
        return product_of_packed(inputs, self._packed, self.bias)


def _of_few_rows(packed: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """A product of few rows with the packed weight, which reads it where it lies; None where oneDNN's own serves."""
    multiply = few_rows(weight.dtype)
    address = None if multiply is None else pairs_of(packed, weight)
    if multiply is None or address is None:
        return None
    return partial(multiply, weight=address, shape=(weight.shape[0], weight.shape[1]), bias=bias)


class _Differentiable(torch.autograd.Function):
    """The product with a gradient to its inputs, which the operator lacks: fitting a Refusal Head needs it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.packed = packed
        return product_of_packed(inputs, packed, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = gradients
        return gradient @ ctx.packed.to_dense(), None, None


@torch.no_grad()
def prepack(model: Any, cpu: CpuCapabilities) -> None:  # noqa: ANN401 - a transformers model on the CPU
    """Change the linear maps of the decoder's layers and the head where that can be had and pays."""

    def prepacked(linear: nn.Linear | Joined) -> nn.Module:
        weight = linear.weight
        pays = weight.dtype != torch.float32 or weight.numel() >= SMALL_FP32
        return PrepackedLinear(weight, linear.bias) if pays and weight.dtype in cpu.prepacked else linear

    change_linears(model.get_decoder(), prepacked)
    model.set_output_embeddings(prepacked(model.get_output_embeddings()))
