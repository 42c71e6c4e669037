"""Choosing the layer to guard: SAS, and how well a prober separates at each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sklearn.metrics import roc_auc_score
from torch import Tensor

from steering.errors import FitError
from steering.fitting.choices import Select
from steering.fitting.sas import bootstrap_interval, safety_awareness_score
from steering.fitting.training import Optimisation, States, fit_prober
from steering.prober import HIDDEN
from steering.specs import LayerFigures

NEAR_BEST = 0.005  # AUROC within which SAS alone chooses between layers


def layer_figures(
    layer: int,
    twins: tuple[Tensor, Tensor],
    train: States,
    held_out: States,
    *,
    hidden: int = HIDDEN,
    optimisation: Optimisation,
) -> LayerFigures:
    """What one layer is worth: SAS of the twins `[n, d]` each, and a prober's held-out AUROC and accuracy.

    Raises FitError where that prober did not converge.
    """
    low, high = bootstrap_interval(*twins)
    prober, _ = fit_prober(train, held_out, hidden=hidden, optimisation=optimisation)
    logits = prober(held_out.x)
    if not logits.isfinite().all():
        raise FitError(f"layer {layer}: the prober's outputs are no numbers: it did not converge")
    return LayerFigures(
        layer=layer,
        sas=safety_awareness_score(*twins),
        sas_low=low,
        sas_high=high,
        auroc=auroc(logits, held_out.y),
        accuracy=balanced_accuracy(logits > 0, held_out.y),
    )


def choose_layer(figures: Sequence[LayerFigures], select: Select) -> int:
    """The layer to guard: the paper's argmax of SAS, the best AUROC, or SAS among layers that separate as well."""
    if select == "auroc":
        return max(figures, key=lambda each: (each.auroc, each.sas)).layer
    best = max(each.auroc for each in figures)
    among = [each for each in figures if select == "sas" or each.auroc >= best - NEAR_BEST]
    return max(among, key=lambda each: each.sas).layer


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Share of (toxic, safe) pairs in the right order; scores and labels `[N]`."""
    return float(roc_auc_score(labels.numpy(), scores.detach().numpy()))


def balanced_accuracy(flagged: Tensor, labels: Tensor) -> float:
    """Mean of the shares of toxic that are flagged and of safe that are not."""
    toxic, safe = flagged[labels == 1].float().mean(), (~flagged[labels == 0]).float().mean()
    return float((toxic + safe) / 2)


def auroc_error(value: float, toxic: int, safe: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil, 1982)."""
    one, two = value / (2 - value), 2 * value**2 / (1 + value)
    square = value * (1 - value) + (toxic - 1) * (one - value**2) + (safe - 1) * (two - value**2)
    return math.sqrt(max(square, 0.0) / (toxic * safe))


def calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error: |share of toxic - mean score|, averaged over bins of equal width by their size."""
    places = (scores * bins).long().clamp(0, bins - 1)
    error = 0.0
    for place in range(bins):
        inside = places == place
        if bool(inside.any()):
            gap = labels[inside].double().mean() - scores[inside].double().mean()
            error += float(gap.abs()) * float(inside.double().mean())
    return error


def no_signal(value: float, labels: Tensor) -> bool:
    """Whether an AUROC on fresh prompts is no better than chance, at two standard errors."""
    toxic = int((labels == 1).sum())
    return value - 2 * auroc_error(value, toxic, len(labels) - toxic) <= 0.5
