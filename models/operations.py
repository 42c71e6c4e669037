"""Operations that are kernels of our own where there are some for the device, and plain torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

FEW_ROWS = 32  # the matrix unit has registers for so many


class Kernels(Protocol):
    """Kernels for a device and dtype; none of them is differentiable."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, scale: float, window: int
    ) -> Tensor:
        """Attention of rows that add one token each, over their blocks."""

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Rotary embedding in place, and the cache's new keys and values."""

    def rms_norm(self, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / rms(x) * weight`."""

    def gated_silu(self, joined: Tensor) -> Tensor:
        """`silu(gate) * up`."""


class ChunkKernels(Kernels, Protocol):
    """Kernels that compute attention of chunks of prompts too."""

    def attend_chunks(
        self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, parts: Tensor, scale: float,
        window: int,
    ) -> Tensor:  # fmt: skip
        """Attention of rows that add any number of tokens, over their blocks; `parts` as of `models.native`."""


@cache
def kernels(device: str, dtype: torch.dtype, head_dim: int = 0) -> Kernels | None:
    """Kernels for tensors of a type of device and a dtype, with heads of so many numbers; None where there are none.

    On a GPU they are Triton's. On a CPU they were compiled when the package was installed, if a compiler was there.
    """
    if device == "cuda":
        from models import kernels as triton  # Triton is there where a GPU is

        return triton
    if device != "cpu":
        return None
    try:
        from models import native
    except ImportError:  # it was installed without a compiler, or before this version
        return None
    return native if dtype in native.DTYPES and head_dim <= native.MOST_WIDTH else None


@cache
def chunk_kernels(device: str, dtype: torch.dtype, head_dim: int, group: int) -> ChunkKernels | None:
    """Kernels of chunks for heads of so many numbers, `group` of which share keys and values; None: there are none.

    They are for CPUs with a matrix unit.
    """
    if device != "cpu" or kernels(device, dtype, head_dim) is None:
        return None
    from models import native

    return native if native.in_tiles(dtype, head_dim, group) else None


class FewRows(Protocol):
    """A kernel for products of few rows with a weight that lies in pairs."""

    def __call__(self, inputs: Tensor, *, weight: int, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        """The product `[..., in]` -> `[..., out]`; `weight` is an address, as `models.cpu.pairs_of` finds it."""


@cache
def few_rows(dtype: torch.dtype) -> FewRows | None:
    """What multiplies up to `FEW_ROWS` rows on this CPU; None where nothing does."""
    if dtype != torch.bfloat16 or kernels("cpu", dtype) is None:
        return None
    from models import native

    return native.multiply_in_tiles if native.has_matrix_unit() else None


@cache
def weigher(device: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What computes `weigh` for tensors of a type of device and a dtype, as cheaply as can be."""
    if device != "cpu" or kernels(device, dtype) is None:
        return weigh
    from models import native

    return native.weigh


def weigh(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`states . weight + bias` `[N, 1]` in fp32, of states `[N, ...]`, weights `[1, W]` and a bias `[]` in fp32."""
    return linear(states.flatten(1).float(), weight, bias[None])


def kernels_for(tensor: Tensor) -> Kernels | None:
    """Kernels for a tensor and those like it; None where a gradient is wanted."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return None
    return kernels(tensor.device.type, tensor.dtype)
