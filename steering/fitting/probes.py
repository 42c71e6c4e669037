"""Fitting what a conversation is read with: Gaussians at turn ends, and a probe over windows from labels of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

SHRINKAGE = 0.3  # towards independent coordinates
STEPS = 150


@dataclass(frozen=True)
class Linear:
    """`x @ weight + bias`, of raw states."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Values `[N]` of states `[N, D]`."""
        return x.float() @ self.weight + self.bias

    @classmethod
    def folded(cls, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Linear:
        """That of raw states, which was fitted on `(x - mean) / scale`."""
        return cls(weight / scale, bias - (weight * mean / scale).sum())


def fit_ends(x: Tensor, y: Tensor, shrinkage: float = SHRINKAGE) -> Linear:
    """How much nearer a state is to harmful prompts than to harmless ones, under one shrunk covariance.

    States `[N, D]`, labels `[N]`, 1 harmful. With one covariance the difference of the two Mahalanobis distances is
    linear (after RCS, arXiv 2512.12069, which has one for each class).
    """
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / scale
    harmful, harmless = z[y == 1].mean(0), z[y == 0].mean(0)
    rest = torch.where(y[:, None] == 1, z - harmful, z - harmless)
    covariance = rest.T @ rest / len(rest)
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * float((rest**2).mean()))
    weight = torch.linalg.solve(covariance, harmful - harmless)
    return Linear.folded(weight, -(harmful + harmless) @ weight / 2, mean, scale)


def fit_windows(windows: Sequence[Tensor], y: Tensor, tick: Callable[[int], None] = lambda _: None) -> Linear:
    """A probe over windows from labels of whole prompts: the windows that look harmful weigh most.

    `windows`: of each prompt `[W, D]`, labels `[N]`. The loss of a prompt is `sum_w softmax(z)_w BCE(z_w, y)`: harmful
    prompts push up the windows that already look harmful, harmless ones push down the most suspicious
    (Constitutional Classifiers++, arXiv 2601.04603).
    """
    owners = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(each) for each in windows]))
    x = torch.cat([each.float() for each in windows])
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / scale
    labels = y.float()
    # Both classes weigh the same, however many prompts they have.
    weights = torch.where(y == 1, 0.5 / (y == 1).sum(), 0.5 / (y == 0).sum())[owners]
    weight, bias = torch.zeros(z.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=5e-2)
    for _ in range(STEPS):
        values = z @ weight + bias
        grown = values.detach().clamp(-30, 30).exp()
        share = grown / torch.zeros(len(windows)).index_add(0, owners, grown)[owners]
        losses = cross_entropy(values, labels[owners], reduction="none")
        optimizer.zero_grad()
        (weights * share * losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tick(1)
    return Linear.folded(weight.detach(), bias.detach(), mean, scale)
