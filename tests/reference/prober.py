"""The prober spelt out on standardised states (paper, section 3.2), for one state at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def score(
    state: Sequence[float],
    mean: Sequence[float],
    scale: Sequence[float],
    first: tuple[Sequence[Sequence[float]], Sequence[float]],
    second: tuple[Sequence[float], float],
    temperature: float,
) -> float:
    """Standardise, hidden layer with ReLU, output, temperature, sigmoid; `first`, `second`: weights and biases."""
    x = [(value - m) / s for value, m, s in zip(state, mean, scale, strict=True)]
    hidden = [max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b) for row, b in zip(*first, strict=True)]
    logit = sum(w * h for w, h in zip(second[0], hidden, strict=True)) + second[1]
    return 1 / (1 + math.exp(-logit / temperature))
