"""Which windows of a row's prompt are harmful: those of its own words, and not of what surrounds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, int8, tensor

from steering.readers import Run

UNKNOWN = -1


def place_of(tokenizer: Any, ids: Sequence[int], words: str) -> Run | None:  # noqa: ANN401 - transformers' own
    """Where words stand among the tokens of a prompt; None where they cannot be found.

    Their first token depends on what stands before it, and is not looked at.
    """
    wanted: list[int] = tokenizer.encode(words, add_special_tokens=False)[1:]
    for at in range(1, len(ids) - len(wanted) + 1) if wanted else ():
        if ids[at] == wanted[0] and [*ids[at : at + len(wanted)]] == wanted:
            return at - 1, at + len(wanted)
    return None


def labels_of(windows: Sequence[Run], harmful: Run) -> Tensor:
    """Labels `[W]` of windows of a prompt in which these tokens are harmful: 1 where half of it or more is.

    0 before them, where nothing is known of them yet; what stands behind them may still be about them: UNKNOWN.
    """
    begin, end = harmful
    inside = [2 * (min(end, last) - max(begin, first)) >= last - first for first, last in windows]
    found = [
        1 if within else 0 if last <= begin else UNKNOWN for within, (_, last) in zip(inside, windows, strict=True)
    ]
    return tensor(found, dtype=int8)
