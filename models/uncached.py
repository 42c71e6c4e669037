"""Prompts for the taps alone: batched passes without rows and without a cache, for fitting and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from models.families import Family
from models.packing import Packed
from models.positions import Positions
from models.prompt import Prompt
from models.tap import Tap
from models.vision import VisionEncoder

_PADDING_LIMIT = 64  # tokens of padding per row that are not worth a pass of their own


class UncachedPrefill:
    """Runs prompts through a model's body, `max_rows` groups in a pass; only taps see what is computed."""

    def __init__(
        self,
        body: Any,  # noqa: ANN401 - a transformers model without its head
        family: Family,
        encoder: VisionEncoder,
        positions: Positions,
        image_token_id: int,
        device: torch.device,
        max_rows: int,
    ) -> None:
        self._body = body
        self._family = family
        self._encoder = encoder
        self._positions = positions
        self._image_token_id = image_token_id
        self._device = device
        self._max_rows = max_rows
        # Prompts may share a row where attention is plainly causal and a token's place is its number.
        self._shares = not (family.mrope or family.token_types or _windowed(body.get_decoder().config))

    @torch.no_grad()
    def run(self, groups: Sequence[Sequence[Prompt]], last: int | None, taps: Sequence[Tap]) -> None:
        """Leave in each tap the states of the `last` tokens of each prompt, or of all, in the order of the prompts.

        The prompts of a group have the same images, or none; where the family allows it, what they begin with is
        computed once.
        """
        packs = [pack for group in groups for pack in self._packed(group, last)]
        starts = [0]
        for pack in packs:
            starts.append(starts[-1] + len(pack.ends))
        order: list[int] = []
        found: list[list[Tensor]] = [[] for _ in taps]
        for similar in _similar([len(pack.ids) for pack in packs]):
            for at in range(0, len(similar), self._max_rows):
                places = similar[at : at + self._max_rows]
                self._pass([packs[place] for place in places], taps)
                order += [at for place in places for at in range(starts[place], starts[place + 1])]
                for states, tap in zip(found, taps, strict=True):
                    states.append(tap.states)
        for states, tap in zip(found, taps, strict=True):
            tap.put(_restored(torch.cat(states), order))

    def _packed(self, group: Sequence[Prompt], last: int | None) -> list[Packed]:
        if last is None:  # what prompts share would be read once
            return [Packed([prompt], 0, len(prompt.ids)) for prompt in group]
        return Packed.of(group, self._image_token_id, share=self._shares, last=last)

    def _pass(self, packs: Sequence[Packed], taps: Sequence[Tap]) -> None:
        """One pass over packed rows, padded on the right."""
        # Never padded with the image token, whose number must match the images.
        ids, mask = _padded([pack.ids for pack in packs], filler=int(self._image_token_id == 0))
        firsts = [pack.prompts[0] for pack in packs]
        arguments = self._arguments(firsts, ids)
        if any(len(pack.prompts) > 1 for pack in packs):
            positions = Packed.positions(packs)
            arguments["attention_mask"] = Packed.mask(packs).to(self._device)
        else:
            positions = self._positions.of_padded(firsts, ids, mask)
            arguments["attention_mask"] = None if bool(mask.all()) else mask.to(self._device)
        rows = torch.tensor([row for row, pack in enumerate(packs) for _ in pack.ends], device=self._device)
        ends = torch.tensor([end for pack in packs for end in pack.ends], device=self._device)
        with ExitStack() as hooks:
            for tap in taps:
                hooks.enter_context(tap.at(ends, rows))
            self._body(
                input_ids=ids.to(self._device), position_ids=positions.to(self._device), use_cache=False, **arguments
            )

    def _arguments(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Any]:
        """What the model's forward takes beside `ids`."""
        arguments: dict[str, Any] = dict(self._encoder.tensors([prompt.features for prompt in prompts]))
        if self._family.token_types is not None:
            arguments[self._family.token_types] = (ids == self._image_token_id).long().to(self._device)
        return arguments


def _windowed(text: Any) -> bool:  # noqa: ANN401 - the decoder's config
    """Whether some layer sees only so far back."""
    window = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    return window is not None if layer_types is None else "sliding_attention" in layer_types


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
