"""The operations of `models/kernels.py` on a CPU, compiled when the package is installed, where a C compiler is there.

torch has none of them as one operator: each is several passes over its data, and attention many small products. In
bf16 and fp32; results are computed in fp32 and rounded once. Not differentiable.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from models.cpu import cpu_capabilities
from models.native import _kernels
from models.native._kernels import (
    attend_tiles,
    has_tiles,
    multiply_tiles,
    weigh_rows,
)  # an older build, which lacks them, is no module of this package

DTYPES = frozenset({torch.bfloat16, torch.float32})
MOST_WIDTH = 512  # of a head, that there is room for

_TILED_BLOCK, _TILED_WIDTH, _TILED_GROUP = 64, 128, 16  # sizes that tiles have room for
_TILES_PAY = 4  # queries that share keys and values; for fewer, vectors are as fast
_ALONE = 2**19  # bytes that one thread goes through in less time than it takes to bring threads together


def attend(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, scale: float, window: int
) -> Tensor:
    """Attention of rows that add one token each, with the arguments of `models.kernels.attend`."""
    rows, heads, width = query.shape
    kv_heads, size = keys.shape[1:3]
    if heads // kv_heads >= _TILES_PAY and size == _TILED_BLOCK and in_tiles(query.dtype, width, heads // kv_heads):
        return attend_chunks(query, keys, values, table, ends, None, scale, window)
    if query.stride()[1:] != (width, 1):  # a row's heads lie side by side
        query = query.contiguous()
    output = torch.empty((rows, heads, width), dtype=query.dtype)
    _kernels.attend(
        query.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr(), ends.data_ptr(), output.data_ptr(),
        rows, query.stride(0), heads, kv_heads, size, width, table.shape[1], window, scale,
        query.dtype == torch.float32, _threads(2 * table.numel() * keys[0].nbytes),
    )  # fmt: skip
    return output


def attend_chunks(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, parts: Tensor | None, scale: float,
    window: int,
) -> Tensor:  # fmt: skip
    """Query `[N, H, D]` of rows that add any number of tokens -> `[N, H, D]`, where `in_tiles` says so.

    `table` and `ends` as of `attend`. `parts` int32 `[P, 4]`: a row's tokens that are computed together, by their row,
    the first of them among the N, how many, and how many the row has until its last; at most `models.chunks.PART`
    over the group of heads. None: each row adds one token.
    """
    tokens, heads, width = query.shape
    if query.stride()[1:] != (width, 1):  # a token's heads lie side by side
        query = query.contiguous()
    output = torch.empty((tokens, heads, width), dtype=query.dtype)
    attend_tiles(
        query.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr(), ends.data_ptr(),
        0 if parts is None else parts.data_ptr(), output.data_ptr(), tokens if parts is None else len(parts),
        query.stride(0), heads, keys.shape[1], keys.shape[2], width, table.shape[1], window, scale,
        _threads(2 * table.numel() * keys[0].nbytes),
    )  # fmt: skip
    return output


@cache
def has_matrix_unit() -> bool:
    """Whether this process may use the CPU's matrix unit."""
    return cpu_capabilities().bf16_tiles and has_tiles()


@cache
def in_tiles(dtype: torch.dtype, width: int, group: int) -> bool:
    """Whether the matrix unit computes attention of heads of that width, `group` of which share keys and values."""
    fits = width % 32 == 0 and width <= _TILED_WIDTH and group <= _TILED_GROUP
    return fits and dtype == torch.bfloat16 and has_matrix_unit()


def rotate(states: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Turn queries and keys in place and store keys and values, with the arguments of `models.kernels.rotate`."""
    count, all_heads, width = states.shape
    kv_heads = len(slots) // count
    cos, sin = cos.contiguous(), sin.contiguous()
    assert states.is_contiguous(), "tokens lie side by side"
    _kernels.rotate(
        states.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), keys.data_ptr(), values.data_ptr(),
        count, all_heads - 2 * kv_heads, kv_heads, width, states.dtype == torch.float32, _threads(states.nbytes),
    )  # fmt: skip


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` of the last dimension, computed in fp32, as `models.kernels.rms_norm`."""
    hidden = hidden.contiguous()
    output, width = torch.empty_like(hidden), hidden.shape[-1]
    _kernels.rms_norm(
        hidden.data_ptr(), weight.data_ptr(), output.data_ptr(), hidden.numel() // width, width, eps,
        hidden.dtype == torch.float32, _threads(hidden.nbytes),
    )  # fmt: skip
    return output


def gated_silu(joined: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., gate and up]`, contiguous, as `models.kernels.gated_silu`."""
    joined, width = joined.contiguous(), joined.shape[-1] // 2
    output = torch.empty((*joined.shape[:-1], width), dtype=joined.dtype)
    _kernels.gated_silu(
        joined.data_ptr(), output.data_ptr(), output.numel() // width, width,
        joined.dtype == torch.float32, _threads(joined.nbytes),
    )  # fmt: skip
    return output


def multiply_in_tiles(inputs: Tensor, *, weight: int, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
    """The product `[..., in]` -> `[..., out]` in bf16, of at most `models.operations.FEW_ROWS` rows.

    `weight`: the address of `[out / 32, in / 2, 32, 2]`, where `models.cpu.pairs_of` finds a weight of that shape.
    """
    outputs, width = shape
    assert inputs.dtype == torch.bfloat16, f"inputs are {inputs.dtype}"
    assert inputs.shape[-1] == width, f"inputs {inputs.shape}, a weight of {shape}"
    inputs = inputs.contiguous()
    output = torch.empty((*inputs.shape[:-1], outputs), dtype=inputs.dtype)
    multiply_tiles(
        inputs.data_ptr(), weight, 0 if bias is None else bias.data_ptr(), output.data_ptr(),
        inputs.numel() // width, width, outputs, _threads(2 * width * outputs),
    )  # fmt: skip
    return output


def weigh(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`states . weight + bias` `[N, 1]` in fp32, with the arguments of `models.operations.weigh`; bf16 or fp32."""
    states = states.contiguous()
    assert states.numel() == len(states) * weight.numel(), f"states {states.shape}, weights {weight.shape}"
    output = torch.empty((len(states), 1), dtype=torch.float32)
    weigh_rows(
        states.data_ptr(), weight.data_ptr(), bias.data_ptr(), output.data_ptr(),
        len(states), weight.numel(), states.dtype == torch.float32,
    )  # fmt: skip
    return output


def _threads(size: int) -> int:
    return torch.get_num_threads() if size > _ALONE else 1
