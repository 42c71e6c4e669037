"""What a guard read of each token of a prompt, for whoever wants to see it. Holds no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TokenScores(NamedTuple):
    """The score in [0, 1] at each token of a prompt, and which of them the prompt's own score is made of.

    `ends`: places of the last token of each turn. `counted`: spans `(begin, end)` that decided the score. A score is
    NaN where the reader had no number.
    """

    scores: Sequence[float]
    ends: Sequence[int]
    counted: Sequence[tuple[int, int]]
