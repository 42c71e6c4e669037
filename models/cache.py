"""The KV cache of all open rows. Only this module knows how rows are stored.

Layout: per layer one tensor `[slots, kv_heads, capacity, head_dim]` for keys and one for values. Open rows fill slots
`0..n-1` without holes (closing a row moves the last one into its place), so that a decode step over all of them reads
a view and copies nothing. Both dimensions grow by doubling. A paged layout would replace this module: callers hold
`Slot` handles, ask for the `CacheView` of one forward pass, hand it to the model, and `commit` it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_FIRST_SLOTS = 4
_FIRST_CAPACITY = 256
_KEEP_CAPACITY = 1024  # an empty cache with more room per row than this gives its memory back


class OutOfRows(RuntimeError):
    """No room for one more row: too many are open, or the row would not fit the context."""


class Slot:
    """Handle of one row's storage. `length` is the number of tokens in it."""

    __slots__ = ("index", "length")

    def __init__(self, index: int) -> None:
        self.index = index
        self.length = 0


class KVCache:
    """Storage for up to `max_rows` rows of up to `context_length` tokens; memory is taken when it is needed."""

    def __init__(self, num_layers: int, max_rows: int, context_length: int) -> None:
        self.max_rows = max_rows
        self.context_length = context_length
        self._open: list[Slot] = []
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._slots = 0
        self._capacity = 0

    @property
    def rows(self) -> int:
        """Number of open rows."""
        return len(self._open)

    @property
    def tokens(self) -> int:
        """Number of tokens held by all open rows."""
        return sum(slot.length for slot in self._open)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._keys)

    def open(self) -> Slot:
        """Reserve a row. Raises `OutOfRows`."""
        if len(self._open) >= self.max_rows:
            raise OutOfRows(f"{len(self._open)} rows are open, the limit is {self.max_rows}")
        slot = Slot(len(self._open))
        self._open.append(slot)
        return slot

    def close(self, slot: Slot) -> None:
        """Free a row: its contents are wiped and the last open row takes its place."""
        assert self._open[slot.index] is slot, f"slot {slot.index} is not open"
        last = self._open.pop()
        for tensor in self._tensors():
            _move(tensor, last.index, slot.index, last.length)
        if last is not slot:
            last.index = slot.index
            self._open[slot.index] = last
        slot.length = 0
        if not self._open and self._capacity > _KEEP_CAPACITY:
            self._release()

    def prefill(self, slots: Sequence[Slot], lengths: Sequence[int]) -> CacheView:
        """View for a forward pass over whole prompts of empty rows, padded on the right to `max(lengths)`."""
        assert all(slot.length == 0 for slot in slots), "prefill of a row that already holds tokens"
        self._reserve(max(lengths))
        return PrefillView(self, slots, lengths)

    def decode(self, slots: Sequence[Slot]) -> DecodeView:
        """View for a forward pass over one new token of each row."""
        assert all(slot.length > 0 for slot in slots), "decode of a row that was never prefilled"
        self._reserve(max(slot.length for slot in slots) + 1)
        return DecodeView(self, slots)

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Storage of one layer, for states like these `[B, kv_heads, T, head_dim]`; for views only."""
        self._keys[index] = stored_keys = self._fit(self._keys[index], keys)
        self._values[index] = stored_values = self._fit(self._values[index], values)
        return stored_keys, stored_values

    def _fit(self, stored: Tensor | None, like: Tensor) -> Tensor:
        if stored is not None and stored.shape[0] >= self._slots and stored.shape[2] >= self._capacity:
            return stored
        shape = (self._slots, like.shape[1], self._capacity, like.shape[3])
        # A tensor made in inference mode could be written there alone, but rows are also closed between passes.
        with torch.inference_mode(mode=False):
            # Zeros, not garbage: what is masked still meets a weight of 0, and 0 * NaN is NaN.
            grown = torch.zeros(shape, dtype=like.dtype, device=like.device)
        if stored is not None:
            grown[: stored.shape[0], :, : stored.shape[2]] = stored
        return grown

    def _reserve(self, capacity: int) -> None:
        assert capacity <= self.context_length, f"{capacity} tokens pass the context of {self.context_length}"
        if capacity > self._capacity:
            doubled = max(capacity, 2 * self._capacity, _FIRST_CAPACITY)
            self._capacity = min(doubled, self.context_length)
        if len(self._open) > self._slots:
            doubled = max(len(self._open), 2 * self._slots, _FIRST_SLOTS)
            self._slots = min(doubled, self.max_rows)

    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in (*self._keys, *self._values) if tensor is not None]

    def _release(self) -> None:
        self._keys = [None] * self.num_layers
        self._values = [None] * self.num_layers
        self._slots = self._capacity = 0


def _move(tensor: Tensor, source: int, target: int, length: int) -> None:
    """Move a row's first `length` tokens to `target`, whose old contents go; either may not be allocated yet."""
    if target < tensor.shape[0]:
        tensor[target].zero_()
    if source != target and source < tensor.shape[0]:
        tensor[target, :, :length] = tensor[source, :, :length]
        tensor[source].zero_()


class CacheView(Cache):  # type: ignore[misc]
    """What one forward pass of the model sees as its cache."""

    def __init__(self, store: KVCache, slots: Sequence[Slot]) -> None:
        super().__init__(layers=[])
        self._store = store
        self._rows = list(slots)
        self._index = [slot.index for slot in slots]
        self._selection: Tensor | None = None

    def commit(self) -> None:
        """Count the pass's tokens to their rows. A pass that raised is simply not committed."""
        raise NotImplementedError

    @property
    def is_sliding(self) -> list[bool]:
        """No layer drops old tokens: windows are the mask's business."""
        return [False] * self._store.num_layers

    def _select(self, device: torch.device) -> slice | Tensor:
        """Index of the pass's rows: a slice where they lie side by side in order."""
        first, count = self._index[0], len(self._index)
        if self._index == list(range(first, first + count)):
            return slice(first, first + count)
        if self._selection is None:
            self._selection = torch.tensor(self._index, device=device)
        return self._selection


class PrefillView(CacheView):
    """The cache is empty: attention runs over the new states themselves, which are stored on the way."""

    def __init__(self, store: KVCache, slots: Sequence[Slot], lengths: Sequence[int]) -> None:
        super().__init__(store, slots)
        self._lengths = list(lengths)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401, ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> tuple[Tensor, Tensor]:
        """Store the states of a layer, `[B, kv_heads, T, head_dim]`."""
        keys, values = self._store.layer(layer_idx, key_states, value_states)
        rows, width = self._select(key_states.device), key_states.shape[2]
        keys[rows, :, :width] = key_states
        values[rows, :, :width] = value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Nothing is cached yet."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Key length and offset for the model's own mask."""
        return query_length, 0

    def commit(self) -> None:
        """Count the prompts' tokens to their rows."""
        for slot, length in zip(self._rows, self._lengths, strict=True):
            slot.length = length


class DecodeView(CacheView):
    """One new token per row, in the order `order`, which the caller gives to the batch.

    `order[i]` is the place, among the rows that were asked for, of the batch's i-th row.
    """

    def __init__(self, store: KVCache, slots: Sequence[Slot]) -> None:
        self.order = sorted(range(len(slots)), key=lambda place: slots[place].index)
        super().__init__(store, [slots[place] for place in self.order])
        self.lengths = [slot.length for slot in self._rows]
        self._total = max(self.lengths) + 1
        self._even = min(self.lengths) + 1 == self._total
        self._positions: Tensor | None = None

    def positions(self, device: torch.device) -> Tensor:
        """`[B]`: the place of each row's new token, which is also the number of tokens before it."""
        if self._positions is None:
            self._positions = torch.tensor(self.lengths, device=device)
        return self._positions

    def mask(self, device: torch.device, window: int | None = None) -> Tensor | None:
        """Boolean `[B, 1, 1, L]` of what each row may see, `window` tokens back at most; None where that is all."""
        if window is None or window >= self._total:
            window = None
            if self._even:
                return None
        places = torch.arange(self._total, device=device)
        ends = self.positions(device)[:, None]
        seen = places <= ends
        if window is not None:
            seen &= places > ends - window
        return seen[:, None, None, :]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401, ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's new states `[B, kv_heads, 1, head_dim]`; returns all of the rows' states, `L` wide."""
        keys, values = self._store.layer(layer_idx, key_states, value_states)
        rows = self._select(key_states.device)
        self._write(keys, rows, key_states)
        self._write(values, rows, value_states)
        return keys[rows, :, : self._total], values[rows, :, : self._total]

    def _write(self, stored: Tensor, rows: slice | Tensor, states: Tensor) -> None:
        if self._even:
            stored[rows, :, self._total - 1] = states[:, :, 0]
            return
        index = self._rows_tensor(states.device)
        stored[index, :, self.positions(states.device)] = states[:, :, 0]

    def _rows_tensor(self, device: torch.device) -> Tensor:
        if self._selection is None:
            self._selection = torch.tensor(self._index, device=device)
        return self._selection

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens before the new one; the model asks only where all rows are equally long."""
        return self._total - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Key length and offset for the model's own mask."""
        return self._total, 0

    def commit(self) -> None:
        """Count the new token to each row."""
        for slot in self._rows:
            slot.length += 1
