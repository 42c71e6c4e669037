"""The Safety Awareness Score as the paper writes it (section 3.1): the mean cosine over all pairs of twins."""

from __future__ import annotations

import torch
from torch import Tensor


def safety_awareness_score(toxic: Tensor, safe: Tensor) -> float:
    """Double loop over pairs of differences; states `[n, d]`. A difference of length 0 has cosine 0 with all others."""
    differences = [a - b for a, b in zip(toxic.double(), safe.double(), strict=True)]
    n = len(differences)
    total = 0.0
    for i in range(n):
        for j in range(i + 1, n):
            lengths = float(differences[i].norm() * differences[j].norm())
            total += float(torch.dot(differences[i], differences[j])) / lengths if lengths else 0.0
    return 2 * total / (n * (n - 1))


def resampled_score(toxic: Tensor, safe: Tensor, drawn: list[int]) -> float:
    """The same over a bootstrap sample of twins, without the pairs in which both are one twin's copies."""
    differences = toxic.double() - safe.double()
    cosines = []
    for a, i in enumerate(drawn):
        for b, j in enumerate(drawn):
            if a != b and i != j:
                one, two = differences[i], differences[j]
                cosines.append(float(torch.dot(one, two) / (one.norm() * two.norm())))
    return sum(cosines) / len(cosines)
