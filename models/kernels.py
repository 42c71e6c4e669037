"""Kernels for GPUs, in Triton: attention over the paged cache, and small operations that a step has by the hundred.

Attention of one token a row follows the block tables. Each program takes one row, one key-value head and a share of the
row's blocks, with all query heads that read that head; a second kernel joins the shares. The work is that of the rows'
own lengths, which are read on the device: a captured graph serves every length.
"""

# mypy: ignore-errors
# Triton's functions are typed by its compiler.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_SHARES = 16
_LEAST = 16  # rows and columns of the smallest tile that is multiplied


@triton.jit
def _shares(
    query, keys, values, table, ends, output, partial, scale, window,
    query_row, query_head, block_stride, head_stride, table_stride, output_row, output_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr, SHARES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(ends + row)
    first = tl.maximum(end - window, 0)
    blocks = tl.cdiv(end, SIZE)
    skipped = first // SIZE
    each = tl.cdiv(blocks - skipped, SHARES)
    start = skipped + share * each
    stop = tl.minimum(start + each, blocks)

    heads = kv_head * GROUP + tl.arange(0, GROUP_TILE)
    inside = tl.arange(0, GROUP_TILE) < GROUP
    widths = tl.arange(0, WIDTH_TILE)
    wide = widths < WIDTH
    places = tl.arange(0, SIZE)
    asked = tl.load(
        query + row * query_row + heads[:, None] * query_head + widths[None, :],
        mask=inside[:, None] & wide[None, :],
        other=0.0,
    )
    highest = tl.full((GROUP_TILE,), -1.0e30, tl.float32)
    total = tl.zeros((GROUP_TILE,), tl.float32)
    found = tl.zeros((GROUP_TILE, WIDTH_TILE), tl.float32)
    for at in range(start, stop):
        block = tl.load(table + row * table_stride + at).to(tl.int64)
        stored = block * block_stride + kv_head * head_stride + places[:, None] * WIDTH + widths[None, :]
        tokens = at * SIZE + places
        seen = (tokens < end) & (tokens >= first)
        key = tl.load(keys + stored, mask=seen[:, None] & wide[None, :], other=0.0)
        if EXACT:
            scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        else:
            scores = tl.dot(asked, tl.trans(key)) * scale
        scores = tl.where(seen[None, :], scores, -1.0e30)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        kept = tl.exp(highest - higher)
        value = tl.load(values + stored, mask=seen[:, None] & wide[None, :], other=0.0)
        if EXACT:
            added = tl.dot(weights, value, input_precision="ieee")
        else:
            added = tl.dot(weights.to(value.dtype), value)
        found = found * kept[:, None] + added
        total = total * kept + tl.sum(weights, 1)
        highest = higher
    if SHARES == 1:
        result = found / total[:, None]
        tl.store(
            output + row * output_row + heads[:, None] * output_head + widths[None, :],
            result.to(output.dtype.element_ty),
            mask=inside[:, None] & wide[None, :],
        )
    else:
        base = partial + ((row * HEADS + heads) * SHARES + share) * (WIDTH_TILE + 2)
        tl.store(base[:, None] + widths[None, :], found, mask=inside[:, None])
        tl.store(base + WIDTH_TILE, highest, mask=inside)
        tl.store(base + WIDTH_TILE + 1, total, mask=inside)


@triton.jit
def _join(
    partial, output, output_row, output_head,
    HEADS: tl.constexpr, SHARES: tl.constexpr, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    shares, widths = tl.arange(0, SHARES), tl.arange(0, WIDTH_TILE)
    base = partial + ((row * HEADS + head) * SHARES + shares) * (WIDTH_TILE + 2)
    highest = tl.load(base + WIDTH_TILE)
    weights = tl.exp(highest - tl.max(highest, 0))
    total = tl.sum(tl.load(base + WIDTH_TILE + 1) * weights, 0)
    found = tl.sum(tl.load(base[:, None] + widths[None, :]) * weights[:, None], 0) / total
    tl.store(
        output + row * output_row + head * output_head + widths, found.to(output.dtype.element_ty), mask=widths < WIDTH
    )


def attend(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, ends: Tensor, scale: float, window: int
) -> Tensor:
    """Query `[B, H, D]` over a layer's keys and values `[blocks, kv_heads, size, D]` -> `[B, H, D]`.

    `table` int32 `[B, M]`, `ends` int32 `[B]`: tokens of each row, the new one with them. `window`: tokens that are
    seen back from that one, which is one of them.
    """
    rows, heads, width = query.shape
    kv_heads, size = keys.shape[1:3]
    group = heads // kv_heads
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    shares = 1
    while shares < _MOST_SHARES and rows * kv_heads * shares < processors and shares < table.shape[1]:
        shares *= 2
    width_tile = max(_LEAST, triton.next_power_of_2(width))
    output = torch.empty((rows, heads, width), dtype=query.dtype, device=query.device)
    partial = torch.empty(
        (rows, heads, shares, width_tile + 2) if shares > 1 else (1,), dtype=torch.float32, device=query.device
    )
    _shares[(rows, kv_heads, shares)](
        query, keys, values, table, ends, output, partial, scale, window,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), table.stride(0), output.stride(0),
        output.stride(1),
        HEADS=heads, GROUP=group, GROUP_TILE=max(_LEAST, triton.next_power_of_2(group)), SIZE=size, WIDTH=width,
        WIDTH_TILE=width_tile, SHARES=shares, EXACT=query.dtype == torch.float32,
    )  # fmt: skip
    if shares > 1:
        _join[(rows, heads)](
            partial, output, output.stride(0), output.stride(1),
            HEADS=heads, SHARES=shares, WIDTH=width, WIDTH_TILE=width_tile,
        )  # fmt: skip
    return output


@triton.jit
def _rotate(
    states, cos, sin, slots, keys, values, states_row,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF_TILE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    places = tl.arange(0, HALF_TILE)
    half: tl.constexpr = WIDTH // 2
    inside = places < half
    own = states + row * states_row + head * WIDTH
    low, high = tl.load(own + places, mask=inside), tl.load(own + half + places, mask=inside)
    if head < HEADS + KV_HEADS:
        at = row * WIDTH + places
        # The sine of the lower half has the sign of the rotation already.
        low_cos, low_sin = tl.load(cos + at, mask=inside), tl.load(sin + at, mask=inside)
        high_cos, high_sin = tl.load(cos + half + at, mask=inside), tl.load(sin + half + at, mask=inside)
        turned_low = (low.to(tl.float32) * low_cos + high.to(tl.float32) * low_sin).to(low.dtype)
        turned_high = (high.to(tl.float32) * high_cos + low.to(tl.float32) * high_sin).to(low.dtype)
        tl.store(own + places, turned_low, mask=inside)
        tl.store(own + half + places, turned_high, mask=inside)
        if head >= HEADS:
            target = keys + tl.load(slots + row * KV_HEADS + head - HEADS) * WIDTH
            tl.store(target + places, turned_low, mask=inside)
            tl.store(target + half + places, turned_high, mask=inside)
    else:
        target = values + tl.load(slots + row * KV_HEADS + head - HEADS - KV_HEADS) * WIDTH
        tl.store(target + places, low, mask=inside)
        tl.store(target + half + places, high, mask=inside)


def rotate(states: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Turn queries and keys in place, and store keys and values.

    States `[N, heads + 2 * kv_heads, D]`, cosine and signed sine `[N, D]`, slots `[N * kv_heads]` in storage `[S, D]`.
    """
    count, all_heads, width = states.shape
    kv_heads = len(slots) // count
    _rotate[(count, all_heads)](
        states, cos, sin, slots, keys, values, states.stride(0),
        HEADS=all_heads - 2 * kv_heads, KV_HEADS=kv_heads, WIDTH=width, HALF_TILE=triton.next_power_of_2(width // 2),
        num_warps=1,
    )  # fmt: skip


@triton.jit
def _normalise(hidden, weight, output, eps, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row, places = tl.program_id(0), tl.arange(0, TILE)
    inside = places < WIDTH
    found = tl.load(hidden + row * WIDTH + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(found * found, 0) / WIDTH + eps)
    result = found * scale * tl.load(weight + places, mask=inside).to(tl.float32)
    tl.store(output + row * WIDTH + places, result.to(output.dtype.element_ty), mask=inside)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` of the last dimension, computed in fp32."""
    hidden = hidden.contiguous()
    output = torch.empty_like(hidden)
    width = hidden.shape[-1]
    _normalise[(hidden.numel() // width,)](
        hidden, weight, output, eps, WIDTH=width, TILE=triton.next_power_of_2(width), num_warps=8
    )
    return output


@triton.jit
def _gate(joined, output, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row, places = tl.program_id(0), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = places < WIDTH
    gate = tl.load(joined + row * 2 * WIDTH + places, mask=inside).to(tl.float32)
    up = tl.load(joined + row * 2 * WIDTH + WIDTH + places, mask=inside).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(output + row * WIDTH + places, result.to(output.dtype.element_ty), mask=inside)


def gated_silu(joined: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., gate and up]`, contiguous."""
    width = joined.shape[-1] // 2
    output = torch.empty((*joined.shape[:-1], width), dtype=joined.dtype, device=joined.device)
    tile = min(1024, triton.next_power_of_2(width))
    _gate[(joined.numel() // (2 * width), triton.cdiv(width, tile))](joined, output, WIDTH=width, TILE=tile)
    return output
