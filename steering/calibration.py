"""From scores to promises: split-conformal thresholds and temperature scaling."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def conformal_threshold(safe_scores: Tensor, target_fpr: float) -> float | None:
    """Threshold whose false-positive rate is at most `target_fpr` for exchangeable safe prompts; scores `[n]`.

    With k = ceil((n + 1) (1 - a)), a new safe score exceeds the k-th smallest with probability at most a; scores at the
    threshold are flagged, so it lies just above. None where `n` is too small to promise anything.
    """
    n = len(safe_scores)
    rank = math.ceil((n + 1) * (1 - target_fpr) - 1e-9)
    if rank > n:
        return None
    kth = safe_scores.float().sort().values[rank - 1]
    above = float(torch.nextafter(kth, torch.tensor(math.inf)))
    return above if above <= 1.0 else None


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature that minimises the binary cross-entropy of `logits / T` `[N]` against labels `[N]`.

    The labels count as the rates that so many rows of each can show (Platt, "Probabilistic outputs for support vector
    machines", 1999, section 2.2): perfectly separated logits would want a temperature of 0, which promises certainty.
    """
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")
    logits, labels = logits.double(), labels.double()
    harmful = labels.sum()
    harmless = len(labels) - harmful
    labels = torch.where(labels > 0, (harmful + 1) / (harmful + 2), 1 / (harmless + 2))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits / log_temperature.exp(), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().clamp(math.log(0.25), math.log(20)).exp())
