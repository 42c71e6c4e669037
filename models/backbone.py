"""A loaded model: batched prefill and decode over the rows that are open.

Token ids and processor tensors in, hidden states and logits out. The forward passes are those of the family's own
stock modules; what is ours is the batching, the positions and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from models.cache import DecodeView, KVCache, OutOfRows, Slot
from models.families import Family
from models.inputs import InputBuilder, Prompt
from models.packing import Packed
from models.tap import Tap

__all__ = ["Backbone", "BackboneInfo", "OutOfRows", "Row"]

T = TypeVar("T")

_PADDING_LIMIT = 64  # tokens of padding per row that are not worth a pass of their own


@dataclass(frozen=True)
class BackboneInfo:
    """What a loaded model is."""

    name: str
    revision: str | None
    architecture: str
    family: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    context_length: int
    dtype: torch.dtype
    device: torch.device
    eos_ids: frozenset[int]
    template_hash: str
    weights_hash: str  # fingerprint of the weights, the same in every dtype


class Row:
    """A sequence that is being generated. Opaque but for its `length`, the number of its tokens in the cache."""

    __slots__ = ("_prompt", "_rope_delta", "_slot")

    def __init__(self, prompt: Prompt, slot: Slot) -> None:
        self._prompt: Prompt | None = prompt  # dropped with its images once prefilled
        self._slot: Slot | None = slot  # None once closed
        self._rope_delta = 0  # what M-RoPE adds to a later token's place

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return 0 if self._slot is None else self._slot.length


class Backbone:
    """A frozen model with its rows. Used by one thread; `inputs` may be used by many."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a transformers model with a head
        family: Family,
        inputs: InputBuilder,
        tokenizer: PreTrainedTokenizerBase,
        info: BackboneInfo,
        image_token_id: int,
        max_rows: int,
    ) -> None:
        self.info = info
        self.inputs = inputs
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self._body: Any = model.model
        self._decoder: Any = model.get_decoder()
        self._head: Any = model.get_output_embeddings()
        self._family = family
        self._image_token_id = image_token_id
        self._cache = KVCache(info.num_layers, max_rows, info.context_length)
        self._taps: list[Tap] = []
        self._window, self._layers_differ = _window(self._decoder.config)
        # Prompts may share a row where attention is plainly causal and a token's place is its number.
        self._shares = not (family.mrope or family.token_types or self._window or self._layers_differ)
        banned = family.banned(model) if family.banned else ()
        self._banned = torch.tensor(list(banned), dtype=torch.long, device=info.device)

    @property
    def open_rows(self) -> int:
        """Rows that are open."""
        return self._cache.rows

    @property
    def cached_tokens(self) -> int:
        """Tokens that all open rows hold in the cache."""
        return self._cache.tokens

    def open_row(self, prompt: Prompt, max_tokens: int) -> Row:
        """Reserve a row for a prompt and up to `max_tokens` tokens after it. Raises `OutOfRows`."""
        assert prompt.ids, "a prompt without tokens"
        needed = len(prompt.ids) + max_tokens
        if needed > self.info.context_length:
            raise OutOfRows(
                f"{len(prompt.ids)} prompt tokens and {max_tokens} more pass the context of {self.info.context_length}"
            )
        return Row(prompt, self._cache.open())

    def close_row(self, row: Row) -> None:
        """Free the row. Closing a closed row does nothing."""
        if row._slot is not None:
            self._cache.close(row._slot)
        row._slot = row._prompt = None

    @torch.no_grad()
    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Run the rows' prompts -> the hidden state `[B, d]` of each prompt's last token, after the last norm."""
        groups = _similar([len(_pending(row).ids) for row in rows])
        order = [place for group in groups for place in group]
        hidden = self._passes([partial(self._prefill, [rows[place] for place in group]) for group in groups], order)
        for row in rows:
            row._prompt = None
        return _restored(torch.cat(hidden), order)

    @torch.no_grad()
    def read(self, groups: Sequence[Sequence[Prompt]], last: int = 1) -> None:
        """Run prompts for the taps alone, group by group: without cache and rows, `max_rows` groups in a pass.

        The prompts of a group have the same images, or none; where the family allows it, what they begin with runs
        once. The taps get the states of the `last` tokens of each prompt, one after the other.
        """
        image, share = self._image_token_id, self._shares
        packs = [pack for group in groups for pack in Packed.of(group, image, share=share, last=last)]
        similar = _similar([len(pack.ids) for pack in packs])
        passes = [some[at : at + self.max_rows] for some in similar for at in range(0, len(some), self.max_rows)]
        starts = [0]
        for pack in packs:
            starts.append(starts[-1] + len(pack.ends))
        order = [at for group in passes for place in group for at in range(starts[place], starts[place + 1])]
        self._passes([partial(self._read, [packs[place] for place in group]) for group in passes], order)

    @torch.no_grad()
    def decode(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        """Append one token to each row: ids `[B]` -> hidden `[B, d]`. The rows may be any of the prefilled ones."""
        assert len(rows) == len(ids), f"{len(rows)} rows, {len(ids)} ids"
        device = self.info.device
        view = self._cache.decode([_slot(row) for row in rows])
        ids = ids.to(device)
        in_order = view.order == list(range(len(rows)))
        if not in_order:
            ids = ids[torch.tensor(view.order, device=device)]
        output = self._decoder(
            input_ids=ids[:, None],
            attention_mask=self._decode_mask(view),
            position_ids=self._decode_positions(view, [rows[place]._rope_delta for place in view.order]),
            cache=view,
            use_cache=True,
        )
        view.commit()
        hidden: Tensor = output.last_hidden_state[:, 0]
        return hidden if in_order else _restored(hidden, view.order)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[B, V]` of hidden states `[B, d]`: the model's head, and what the family does after it."""
        logits: Tensor = self._head(hidden)
        if len(self._banned):
            logits[:, self._banned] = torch.finfo(logits.dtype).min
        return logits

    @contextmanager
    def tap(self, layer: int | Sequence[int]) -> Iterator[Tap]:
        """Within this context each `prefill` leaves the layer's state at each row's last prompt token in `tap.states`.

        `[B, d]`, in the order of the rows; for several layers `[B, layers, d]`.
        """
        tap = Tap(self._decoder, layer)
        self._taps.append(tap)
        try:
            yield tap
        finally:
            self._taps.remove(tap)

    def _passes(self, passes: Sequence[Callable[[], T]], order: Sequence[int]) -> list[T]:
        """Run one pass after the other; each tap gets the states of all, the i-th of them at place `order[i]`."""
        results: list[T] = []
        tapped: list[list[Tensor]] = [[] for _ in self._taps]
        for run in passes:
            results.append(run())
            for states, tap in zip(tapped, self._taps, strict=True):
                states.append(tap.states)
        for states, tap in zip(tapped, self._taps, strict=True):
            tap.put(_restored(torch.cat(states), order))
        return results

    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        """One pass over prompts padded on the right -> hidden state at each one's last token."""
        device = self.info.device
        prompts = [_pending(row) for row in rows]
        lengths = [len(prompt.ids) for prompt in prompts]
        ids, mask = self._padded([prompt.ids for prompt in prompts])
        positions, deltas = self._prefill_positions(prompts, ids, mask)
        view = self._cache.prefill([_slot(row) for row in rows], lengths)
        arguments = self._arguments(prompts, ids)
        # Without padding there is no mask: attention is then plainly causal, which has faster kernels.
        arguments["attention_mask"] = None if min(lengths) == max(lengths) else mask.to(device)
        last = torch.tensor(lengths, device=device) - 1
        with ExitStack() as taps:
            for tap in self._taps:
                taps.enter_context(tap.at(last))
            output = self._body(
                input_ids=ids.to(device), position_ids=positions.to(device), cache=view, use_cache=True, **arguments
            )
        view.commit()
        for row, delta in zip(rows, deltas, strict=True):
            row._rope_delta = delta
        hidden: Tensor = output.last_hidden_state
        return hidden[torch.arange(len(rows), device=device), last]

    def _read(self, packs: Sequence[Packed]) -> None:
        """One pass over packed rows, padded on the right."""
        device = self.info.device
        ids, mask = self._padded([pack.ids for pack in packs])
        firsts = [pack.prompts[0] for pack in packs]
        arguments = self._arguments(firsts, ids)
        if any(len(pack.prompts) > 1 for pack in packs):
            positions = Packed.positions(packs)
            arguments["attention_mask"] = Packed.mask(packs).to(device)
        else:
            positions, _ = self._prefill_positions(firsts, ids, mask)
            arguments["attention_mask"] = None if bool(mask.all()) else mask.to(device)
        rows = torch.tensor([row for row, pack in enumerate(packs) for _ in pack.ends], device=device)
        ends = torch.tensor([end for pack in packs for end in pack.ends], device=device)
        with ExitStack() as taps:
            for tap in self._taps:
                taps.enter_context(tap.at(ends, rows))
            self._body(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False, **arguments)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        # Never padded with the image token, whose number must match the images.
        return _padded(sequences, filler=int(self._image_token_id == 0))

    def _arguments(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Any]:
        """What a pass over `ids` takes beside them."""
        arguments: dict[str, Any] = self._features(prompts)
        if self._family.token_types is not None:
            arguments[self._family.token_types] = (ids == self._image_token_id).long().to(self.info.device)
        return arguments

    def _features(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The images of all rows, joined as the family's forward wants them."""
        device, dtype = self.info.device, self.info.dtype
        joined: dict[str, Tensor] = {}
        for name in self._family.features:
            tensors = [prompt.features[name] for prompt in prompts if name in prompt.features]
            if tensors:
                tensor = _joined(tensors, self._family.image_dim)
                joined[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        return joined

    def _prefill_positions(self, prompts: Sequence[Prompt], ids: Tensor, mask: Tensor) -> tuple[Tensor, list[int]]:
        """Positions of the padded prompts, `[B, T]` or with M-RoPE `[3, B, T]`, and each row's rope delta."""
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        if not self._family.mrope:
            return positions, [0] * len(prompts)
        grids = [prompt.features["image_grid_thw"] for prompt in prompts if "image_grid_thw" in prompt.features]
        if not grids:
            return positions.expand(3, *ids.shape), [0] * len(prompts)
        positions, deltas = self._body.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_token_id).int(),
            image_grid_thw=torch.cat(grids),
            attention_mask=mask,
        )
        return positions, [int(delta) for delta in deltas[:, 0]]

    def _decode_positions(self, view: DecodeView, deltas: Sequence[int]) -> Tensor:
        positions = view.positions(self.info.device)[:, None]
        if not self._family.mrope:
            return positions
        if any(deltas):
            positions = positions + torch.tensor(deltas, device=self.info.device)[:, None]
        return positions.expand(3, *positions.shape)

    def _decode_mask(self, view: DecodeView) -> Tensor | dict[str, Tensor | None] | None:
        windowed = view.mask(self.info.device, self._window)
        if not self._layers_differ:
            return windowed
        return {"full_attention": view.mask(self.info.device), "sliding_attention": windowed}


def _window(text: Any) -> tuple[int | None, bool]:  # noqa: ANN401 - the decoder's config
    """How many tokens back a layer sees (None: all), and whether that holds for some layers only."""
    window = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    if layer_types is None:
        return window, False  # Mistral's window holds for every layer
    return (window, True) if "sliding_attention" in layer_types else (None, False)


def _slot(row: Row) -> Slot:
    assert row._slot is not None, "the row is closed"
    return row._slot


def _pending(row: Row) -> Prompt:
    assert row._prompt is not None, "the row is closed or was prefilled before"
    return row._prompt


def _restored(batch: Tensor, order: Sequence[int]) -> Tensor:
    """Undo a permutation: row `i` of `batch` belongs at place `order[i]`."""
    if list(order) == list(range(len(order))):
        return batch
    return torch.empty_like(batch).index_copy_(0, torch.tensor(order, device=batch.device), batch)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows, grouped so that in no group padding is both long and more than half of the longest row."""
    groups: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        wasted = longest - lengths[place]
        if not groups or (wasted > _PADDING_LIMIT and wasted > longest // 2):
            groups.append([])
            longest = lengths[place]
        groups[-1].append(place)
    return groups


def _padded(sequences: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` padded on the right, and the mask of what is not padding."""
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[*ids, *[filler] * (width - len(ids))] for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    return ids, mask


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along `dim`; the other dimensions are padded with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        target = [size if place != dim else tensor.shape[dim] for place, size in enumerate(shape)]
        amounts = [amount for size, goal in zip(tensor.shape, target, strict=True) for amount in (goal - size, 0)]
        padded.append(nn.functional.pad(tensor, amounts[::-1]) if any(amounts) else tensor)
    return torch.cat(padded, dim=dim)
