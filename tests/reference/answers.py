"""The score of an answer spelt out: all windows at once, of the whole answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from steering.scale import Scale


def numbers(
    states: Sequence[Sequence[float]], weight: Sequence[float], bias: float, prompt_weight: float, prompt_score: float
) -> list[float]:
    """The number of each token, of its states side by side."""
    logit = math.log(prompt_score / (1 - prompt_score))
    clipped = min(8.0, max(-8.0, logit))
    return [sum(w * x for w, x in zip(weight, state, strict=True)) + prompt_weight * clipped + bias for state in states]


def raw(numbers: Sequence[float], window: int) -> float:
    """The higher of two: the lower of any two windows in a row, and the mean of the three highest windows."""
    windows = []
    for end in range(1, len(numbers) + 1):
        inside = numbers[max(0, end - window) : end]
        windows.append(sum(inside) / len(inside))
    pairs = [min(pair) for pair in pairwise(windows)]
    means = [sum(sorted(windows)[-3:]) / 3] if len(windows) >= 3 else []
    return max([*pairs, *means], default=-math.inf)


def score(raw: float, scale: Scale, slope: float, shift: float) -> float:
    """That on the scale of harmless answers, in [0, 1]."""
    if raw == -math.inf:
        return 0.0
    return 1 / (1 + math.exp(-(slope * scale(raw) + shift)))
