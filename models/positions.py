"""Positions of tokens: their number in the row, or with M-RoPE (Qwen-VL) three numbers that follow the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.attention import Span
from models.prompt import Prompt
from models.rows import Row


class Positions:
    """Position ids of one model's passes.

    `body`: the transformers model without its head, which knows M-RoPE's rule (`get_rope_index`).
    """

    def __init__(self, body: Any, *, mrope: bool, image_token_id: int, device: torch.device) -> None:  # noqa: ANN401
        self._body = body
        self._mrope = mrope
        self._image_token_id = image_token_id
        self._device = device

    def prepare(self, row: Row, prompt: Prompt) -> None:
        """Compute a new row's M-RoPE positions, once for its whole prompt; nothing elsewhere."""
        if self._mrope and "image_grid_thw" in prompt.features:
            ids = torch.tensor([prompt.ids])
            grids = prompt.features["image_grid_thw"]
            positions, deltas = self._indexed(ids, grids, torch.ones_like(ids))
            row.positions, row.deltas = positions[:, 0], int(deltas[0, 0])

    def of_spans(self, rows: Sequence[Row], spans: Sequence[Span]) -> Tensor:
        """Positions of a pass over spans of rows side by side: `[1, N]`, or with M-RoPE `[3, 1, N]`, on the device."""
        if not self._mrope:
            numbers = [at for span in spans for at in range(span.start, span.end)]
            return torch.tensor([numbers], device=self._device)
        parts = []
        for row, span in zip(rows, spans, strict=True):
            known = row.positions
            inside = 0 if known is None else max(0, min(known.shape[1], span.end) - span.start)
            if known is not None and inside:
                parts.append(known[:, span.start : span.start + inside])
            later = torch.arange(span.start + inside, span.end) + row.deltas
            parts.append(later.expand(3, -1))
        return torch.cat(parts, dim=1).to(self._device)[:, None]

    def of_padded(self, prompts: Sequence[Prompt], ids: Tensor, mask: Tensor) -> Tensor:
        """Positions of prompts, rows of `ids` `[B, T]` padded on the right: `[B, T]`, or with M-RoPE `[3, B, T]`."""
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        if not self._mrope:
            return positions
        grids = [prompt.features["image_grid_thw"] for prompt in prompts if "image_grid_thw" in prompt.features]
        if not grids:
            return positions.expand(3, *ids.shape)
        return self._indexed(ids, torch.cat(grids), mask)[0]

    def _indexed(self, ids: Tensor, grids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """M-RoPE positions `[3, B, T]`, and what each row's later tokens add to their number, `[B, 1]`."""
        positions, deltas = self._body.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_token_id).int(),
            image_grid_thw=grids,
            attention_mask=mask,
        )
        return positions, deltas
