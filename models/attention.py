"""Attention of one pass over the paged cache, behind the attention interface of `transformers`.

All tokens of a pass lie side by side in one sequence `[1, N]`: first the rows that add one token to what they have,
then the chunks of prompts. The models' own modules compute everything but attention; what is here stores a layer's new
keys and values in the rows' blocks and lets each token see its own row. Attention over the cache costs what the rows
hold, whatever the longest of them, and copies none of it where one token is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from models.cache import PagedCache, Table
from models.chunks import Chunks
from models.decode import Decode

PAGED = "paged"  # the name of this implementation in a model's config


@dataclass(frozen=True)
class Span:
    """The part that one row has in a pass: `count` tokens after the `start` tokens that are in its blocks."""

    table: Table
    start: int
    count: int
    images: Tensor | None = (
        None  # `[>= end]` the image that a token is of, -1 if none: an image's tokens see each other
    )

    @property
    def end(self) -> int:
        """How many tokens the row has after the pass."""
        return self.start + self.count

    @property
    def decodes(self) -> bool:
        """Whether the row adds one token to those that it has."""
        return self.count == 1 and self.start > 0


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    paged: Pass | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """The interface's function: query `[1, H, N, D]` -> `[1, N, H, D]`; without a pass the stock SDPA."""
    if paged is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return paged.attend(module, query, key, value, scale, sliding_window), None


ALL_ATTENTION_FUNCTIONS.register(PAGED, paged_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PAGED, sdpa_mask)


class Pass(Cache):  # type: ignore[misc]
    """One forward pass, as the model's cache and as its attention."""

    def __init__(self, cache: PagedCache, slots: Tensor) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self._kernels = cache.shape.kernels
        self._angles: tuple[Tensor, Tensor, Tensor] | None = None  # cosines as they came, and both as kernels take them
        self._slots = slots  # where each of the pass's tokens is stored, see `PagedCache.slots`

    @property
    def is_sliding(self) -> list[bool]:
        """False for each layer: none drops old tokens, and attention itself keeps to windows."""
        return [False] * self._cache.shape.layers

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Always 0: positions are given, so nothing asks for it."""
        return 0

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401, ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> tuple[Tensor, Tensor]:
        """Store the states of a layer, `[1, kv_heads, N, head_dim]`."""
        self._cache.write(layer_idx, self._slots, key_states, value_states)
        return key_states, value_states

    def rotate(self, layer: int, states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Turn a layer's queries and keys and store keys and values: query, key, value as `attend` takes them.

        States `[1, N, heads + 2 * kv_heads, D]`, which may be overwritten; cosine and signed sine `[1, N, 1, D]`.
        """
        shape = self._cache.shape
        if self._kernels is None or states.dtype != shape.dtype:
            query, key, value = rotated(states, cos, sin, heads, shape.kv_heads)
            self.update(key, value, layer)
            return query, key, value
        if self._angles is None or self._angles[0] is not cos:  # they are the same for all layers
            self._angles = cos, cos[0, :, 0].contiguous(), sin[0, :, 0].contiguous()
        self._kernels.rotate(states[0], *self._angles[1:], self._slots, *self._cache.flat[layer])
        query, key, value = torch.split(states.transpose(1, 2), [heads, shape.kv_heads, shape.kv_heads], dim=1)
        return query, key, value

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention of new tokens: query `[1, H, N, D]`, key and value `[1, kv_heads, N, D]` -> `[1, N, H, D]`."""
        raise NotImplementedError


class DecodePass(Pass):
    """Rows that add one token each, and nothing else."""

    def __init__(self, cache: PagedCache, slots: Tensor, decode: Decode) -> None:
        super().__init__(cache, slots)
        self._decode = decode

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,  # noqa: ARG002
        value: Tensor,  # noqa: ARG002
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attention of the rows' new tokens, with the shapes of `Pass.attend`."""
        keys, values = self._cache.layers[module.layer_idx]  # type: ignore[index]
        return self._decode.attend(query, keys, values, scale, window)[None]


class MixedPass(Pass):
    """Rows that add one token each, if any, then chunks of prompts, then `spare` tokens that no row has."""

    def __init__(
        self, cache: PagedCache, slots: Tensor, decode: Decode | None, chunks: Sequence[Span], spare: int = 0
    ) -> None:
        super().__init__(cache, slots)
        self._decode = decode
        self._chunks = chunks
        self._spare = spare
        self._rows = 0 if decode is None else decode.rows
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._device = cache.shape.device
        self._follow = self._following()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention of the rows' and the chunks' new tokens, with the shapes of `Pass.attend`."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        keys, values = self._cache.layers[layer]
        parts: list[Tensor] = []
        if self._decode is not None:
            parts.append(self._decode.attend(query[:, :, : self._rows], keys, values, scale, window))
        if self._follow is not None:
            output = self._follow.attend(query, keys, values, scale, window)
            if parts:
                output[: self._rows] = parts[0]
            output[len(output) - self._spare :] = 0.0  # what nobody computed may be no number
            return output[None]
        parts += self._attend_chunks(module, layer, query, key, value, scale, window)
        if self._spare:
            parts.append(query.new_zeros(self._spare, *parts[0].shape[1:]))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _following(self) -> Chunks | None:
        """The chunks for kernels that follow their tables; None without such, or where images see all of themselves."""
        kernels = self._cache.shape.chunk_kernels
        if kernels is None or any(span.images is not None for span in self._chunks):
            return None
        tables = [span.table for span in self._chunks]
        ends, counts = [span.end for span in self._chunks], [span.count for span in self._chunks]
        return Chunks(kernels, self._cache, tables, ends, counts, self._rows)

    def _attend_chunks(
        self, module: nn.Module, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> list[Tensor]:
        """Of the chunks, `[T, H, D]` each; those that begin their rows and are equally long in one."""
        parts: list[Tensor] = []
        at, place = self._rows, 0
        while place < len(self._chunks):
            span = self._chunks[place]
            alike = 1
            if self._plain(span, window):
                while place + alike < len(self._chunks) and self._same(span, self._chunks[place + alike], window):
                    alike += 1
                parts.append(_begin(module, query, key, value, scale, at, alike, span.count))
            else:
                parts.append(self._go_on(place, layer, query[0, :, at : at + span.count], scale, window))
            at += alike * span.count
            place += alike
        return parts

    def _same(self, span: Span, other: Span, window: int | None) -> bool:
        return other.count == span.count and self._plain(other, window)

    @staticmethod
    def _plain(span: Span, window: int | None) -> bool:
        """Whether the chunk is all that there is of its row, and plainly causal."""
        return span.start == 0 and span.images is None and (window is None or window >= span.end)

    def _go_on(self, place: int, layer: int, query: Tensor, scale: float, window: int | None) -> Tensor:
        """A chunk after others, or with a mask of its own: query `[H, T, D]` -> `[T, H, D]`."""
        span = self._chunks[place]
        keys, values = self._cache.row(layer, span.table, span.end)
        heads, count, width = query.shape
        kv_heads = keys.shape[0]
        # Heads that share a key-value head are heads of one batch entry: nothing is repeated.
        grouped = query.reshape(kv_heads, heads // kv_heads, count, width)
        shape = (kv_heads, heads // kv_heads, span.end, width)
        states = grouped, keys[:, None].expand(shape), values[:, None].expand(shape)
        plain = span.images is None and (window is None or window >= span.end)
        if plain and self._device.type == "cuda":
            # Known to the kernels, which then make no mask.
            output = scaled_dot_product_attention(*states, attn_mask=causal_lower_right(count, span.end), scale=scale)
        else:
            if (place, window) not in self._masks:
                self._masks[place, window] = _mask(span, window, self._device)
            # Not the memory-efficient kernel: with some masks what it gives on a GPU is wrong.
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                output = scaled_dot_product_attention(*states, attn_mask=self._masks[place, window], scale=scale)
        return output.reshape(heads, count, width).transpose(0, 1)


def rotated(states: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value `[B, heads, N, D]`, the first two turned, of states `[B, N, heads + 2 * kv_heads, D]`."""
    turning, value = torch.split(states, [heads + kv_heads, kv_heads], dim=2)
    crossed = turning.view(*turning.shape[:-1], 2, -1).flip(-2).flatten(-2)
    turned = torch.addcmul(turning * cos, crossed, sin).transpose(1, 2)
    query, key = torch.split(turned, [heads, kv_heads], dim=1)
    return query, key, value.transpose(1, 2)


def _begin(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, at: int, rows: int, count: int
) -> Tensor:
    """`rows` whole beginnings of `count` tokens each, from token `at` of the pass -> `[rows * count, H, D]`."""
    stop = at + rows * count
    query, key, value = (
        states[0, :, at:stop].view(states.shape[1], rows, count, -1).transpose(0, 1) for states in (query, key, value)
    )
    output, _ = sdpa_attention_forward(module, query, key, value, None, scaling=scale, is_causal=True)
    joined: Tensor = output.flatten(0, 1)
    return joined


def _mask(span: Span, window: int | None, device: torch.device) -> Tensor:
    asking = torch.arange(span.start, span.end, device=device)[:, None]
    asked = torch.arange(span.end, device=device)
    seen = asked <= asking
    if span.images is not None:
        images = span.images[: span.end].to(device)
        images = pad(images, (0, span.end - len(images)), value=-1)
        own = images[span.start :, None]
        seen |= (own == images) & (own >= 0)
    if window is not None:
        seen &= asked > asking - window
    return seen
