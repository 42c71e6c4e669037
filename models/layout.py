"""Where a chat's turns end and which tokens are its content, found in the token ids alone.

What marks the end of a turn is learnt once from a chat template, so that no template needs rules of its own. As a
place is a function of the ids before it, whatever is known of a cached token stays right in another prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = Callable[[Sequence[Mapping[str, Any]]], Sequence[int]]  # of a chat of words

_SHORT = [{"role": "user", "content": "What is rain?"}]
_OTHER = [{"role": "user", "content": "Name two rivers"}]
_TURNS = [*_SHORT, {"role": "assistant", "content": "Water."}, *_OTHER]

_CONTROL, _TEXT, _IMAGE = range(3)


@dataclass(frozen=True)
class Layout:
    """Of one prompt: its length, the last token of each turn's end, and the runs of text or image tokens.

    `ends` rise, and the last of them is the prompt's last token. A run `(begin, end)` holds no control token. `begun`:
    whether it ends within an answer that was begun for the model; `header`: how many tokens at its end are an answer's
    header.
    """

    tokens: int
    ends: Sequence[int]
    runs: Sequence[tuple[int, int]]
    has_image: bool
    begun: bool = False
    header: int = 0


@dataclass(frozen=True)
class LayoutFinder:
    """Finds the layout of prompts of one model. Without a `header` a prompt has one end, its last token."""

    header: tuple[int, ...]  # what stands between a user's words and an answer, but for white space at its end
    blanks: int  # tokens of white space that follow it
    kinds: NDArray[np.int8]  # of each token up to the last that is no text, and text

    @classmethod
    def learn(cls, ids: Ids, blank: Callable[[int], bool], control: Set[int], image: int) -> LayoutFinder:
        """Learn it from a template. `ids`: those of a chat, none where the template refuses it; `blank`: whether a
        token is white space alone.

        White space is left out of the header: an answer that begins with a line break may share a token with it.
        """
        kinds = np.full(max((*control, image)) + 2, _TEXT, dtype=np.int8)
        kinds[[*control]] = _CONTROL
        if image >= 0:
            kinds[image] = _IMAGE
        suffix = _common_suffix(ids(_SHORT), ids(_OTHER))
        turns = np.asarray(ids(_TURNS), dtype=np.int64)
        for length in range(len(suffix), 0, -1):
            header = suffix[:length]
            while header and blank(header[-1]):
                header = header[:-1]
            # Before the answer in the chat and at its end; after the answer as well, where all turns end alike.
            if header and len(_places(turns, header)) in (2, 3):
                return cls(tuple(header), length - len(header), kinds)
        return cls((), 0, kinds)

    def of(self, ids: Sequence[int]) -> Layout:
        """The layout of a prompt of at least one token."""
        found = np.asarray(ids)
        last = len(found) - 1
        headers = _places(found, self.header).tolist() if self.header else []
        behind = [place + len(self.header) - 1 + self.blanks for place in headers]
        kinds = self.kinds.take(found, mode="clip")
        borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(found)]
        runs = [(begin, end) for begin, end in pairwise(borders) if kinds[begin] != _CONTROL]
        awaits = bool(behind) and behind[-1] >= last
        begun = bool(behind) and not awaits and bool(runs) and runs[-1][1] > last and runs[-1][0] <= behind[-1] + 1
        return Layout(
            len(found),
            sorted({last, *(min(place, last) for place in behind)}),
            runs,
            bool((kinds == _IMAGE).any()),
            begun,
            len(found) - headers[-1] if awaits else 0,
        )


def _places(ids: NDArray[np.int64], wanted: Sequence[int]) -> NDArray[np.int64]:
    """Where a sequence begins in another."""
    count = len(ids) - len(wanted) + 1
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    same = np.ones(count, dtype=bool)
    for offset, token in enumerate(wanted):
        same &= ids[offset : offset + count] == token
    return np.flatnonzero(same)


def _common_suffix(first: Sequence[int], second: Sequence[int]) -> list[int]:
    alike = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        alike += 1
    return list(first[len(first) - alike :])
