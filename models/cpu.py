"""What this machine's CPU can compute with the installed torch, asked once.

The products below are private to torch, and CPUs without AVX-512, other architectures and builds without oneDNN lack
some of them: each is tried before it is used, and the plain product serves where it does not work. With
`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` in the environment torch computes as on a CPU without AVX-512, and
the answers here are those of such a CPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

# Values of ONEDNN_MAX_CPU_ISA under which oneDNN takes bf16 weights but computes in fp32.
_EMULATES_BF16 = frozenset({"AVX512_CORE", "AVX512_CORE_VNNI"})
_NO_LIMIT = frozenset({"", "ALL", "DEFAULT"})


@dataclass(frozen=True)
class CpuCapabilities:
    """What a CPU computes well. `CpuCapabilities()` has only the plain products.

    `bf16_products`: by instructions for bf16 (AVX512-BF16); without them they take several times as long as in fp32.
    `prepacked`: dtypes of weights that can be brought into the layout of oneDNN's products beforehand.
    `bf16_tiles`: by a matrix unit (AMX), which our own kernels use too.
    `int8_products`: of activations and int8 weights, by a kernel that makes no copy of the weights.
    """

    bf16_products: bool = False
    bf16_tiles: bool = False
    prepacked: frozenset[torch.dtype] = frozenset()
    int8_products: bool = False


@cache
def cpu_capabilities() -> CpuCapabilities:
    """What the CPU that this process runs on computes well."""
    prepacked = frozenset(dtype for dtype in (torch.float32, torch.bfloat16) if _works(_prepacked_product, dtype))
    bf16_products = torch.bfloat16 in prepacked and _has_bf16_instructions()
    return CpuCapabilities(
        bf16_products=bf16_products,
        bf16_tiles=bf16_products and _has_matrix_unit(),
        prepacked=prepacked,
        int8_products=all(_works(_int8_product, dtype) for dtype in (torch.float32, torch.bfloat16)),
    )


def _has_bf16_instructions() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and _limit() not in _EMULATES_BF16


def _has_matrix_unit() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and (_limit() in _NO_LIMIT or "AMX" in _limit())


def _limit() -> str:
    """What the environment lets oneDNN use of the CPU."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


def _works(product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> bool:
    """Whether a product exists here and is that of the plain weight."""
    inputs = torch.linspace(-1, 1, 2 * 32).view(2, 32).to(dtype)
    weight = torch.linspace(-3, 3, 48 * 32).round().view(48, 32).to(dtype)
    try:
        with torch.no_grad():
            found = product(inputs, weight)
    except (RuntimeError, AttributeError):  # the CPU or this build of torch lacks it
        return False
    return torch.allclose(found.float(), linear(inputs.float(), weight.float()), atol=0.05, rtol=0.02)


def _prepacked_product(inputs: Tensor, weight: Tensor) -> Tensor:
    return product_of_packed(inputs, pack(weight), None)


def _int8_product(inputs: Tensor, weight: Tensor) -> Tensor:
    return int8_product(inputs, weight.to(torch.int8), torch.ones(len(weight), dtype=inputs.dtype))


def pack(weight: Tensor) -> Tensor:
    """A weight in the layout of oneDNN's products; only of a dtype in `CpuCapabilities.prepacked`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def pairs_of(packed: Tensor, weight: Tensor) -> int | None:
    """The address of a weight of `pack`, where it lies as `[out / 32, in / 2, 32, 2]`: 32 outputs, in pairs of inputs.

    That is how oneDNN lays out weights in bf16 on CPUs with a matrix unit, which it promises nobody: None where it, or
    the way to look at it, is another.
    """
    outputs, inputs = weight.shape
    if weight.dtype != torch.bfloat16 or outputs % 32 or inputs % 2:
        return None
    try:
        address, size = torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed)
    except (RuntimeError, AttributeError):
        return None
    if size != weight.nbytes:
        return None
    stored = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=weight.dtype).view(
        -1, inputs // 2, 32, 2
    )
    some = sorted({0, len(stored) // 2, len(stored) - 1})  # a layout goes on as it begins
    plain = weight.detach().view(-1, 32, inputs // 2, 2)[some].transpose(1, 2)
    return address if torch.equal(stored[some], plain) else None


def product_of_packed(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """The product `[..., in]` -> `[..., out]` with a weight of `pack`."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return output


def int8_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product `[B, in]` -> `[B, out]` with weights `int8 * scale`; only where `CpuCapabilities.int8_products`."""
    return torch._weight_int8pack_mm(rows, weight, scale)
