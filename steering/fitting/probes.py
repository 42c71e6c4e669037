"""Fitting what a conversation is read with: Gaussians at turn ends, and a probe over windows from labels of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from steering.fitting.spans import UNKNOWN
from steering.readers import HIGHEST

SHRINKAGE = 0.3  # of covariances towards independent coordinates
ROUNDS = 2  # in which the windows of harmful prompts in surroundings are chosen
AT_ONCE = 8192  # states
STEPS = 150
HARD_SHARE = 0.3  # of the weight of a class, which its hard negatives have


@dataclass(frozen=True)
class Linear:
    """`x @ weight + bias`, of raw states; a weight `[K, D]` stands for several of them."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Values `[N]` of states `[N, D]`."""
        return x.float() @ self.weight + self.bias

    @classmethod
    def folded(cls, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Linear:
        """The map of raw states that does what one fitted on `(x - mean) / scale` does."""
        return cls(weight / scale, bias - (weight * mean / scale).sum(-1))


def weights_of(y: Tensor, hard: Tensor, share: float = HARD_SHARE) -> Tensor:
    """How much each row weighs `[N]`: both classes a half, and of each the hard negatives `share`, or more if they are.

    Labels `[N]`, 1 harmful; `hard` `[N]`, bool.
    """
    found = torch.zeros(len(y))
    for label in (0, 1):
        inside = y == label
        few, rest = inside & hard, inside & ~hard
        of_few = max(share, float(few.sum() / inside.sum())) if few.any() and rest.any() else float(few.any())
        found[few] = 0.5 * of_few / few.sum()
        found[rest] = 0.5 * (1 - of_few) / rest.sum()
    return found


def fit_gaussians(x: Tensor, y: Tensor, weights: Tensor, shrinkage: float = SHRINKAGE) -> Linear:
    """How much nearer a state is to harmful prompts than to harmless ones, under one shrunk covariance.

    States `[N, D]`, labels `[N]`, 1 harmful, weights `[N]` (see `weights_of`: those of each class are a half). With one
    covariance the difference of the two Mahalanobis distances is linear (after RCS, arXiv 2512.12069, which has one for
    each class).
    """
    sample = x[:: max(1, len(x) // AT_ONCE)].float()
    mean, scale = sample.mean(0), sample.std(0).clamp_min(1e-6)
    sums, covariance = torch.zeros(2, x.shape[1]), torch.zeros(x.shape[1], x.shape[1])
    for begin in range(0, len(x), AT_ONCE):
        some = slice(begin, begin + AT_ONCE)
        z = (x[some].float() - mean) / scale
        weighted = weights[some, None] * z
        sums.index_add_(0, y[some], weighted)
        covariance.addmm_(weighted.T, z)
    harmless, harmful = 2 * sums
    covariance -= (torch.outer(harmless, harmless) + torch.outer(harmful, harmful)) / 2
    between = shrinkage * float(covariance.diagonal().mean())
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(between)
    weight = torch.linalg.solve(covariance, harmful - harmless)
    return Linear.folded(weight, -(harmful + harmless) @ weight / 2, mean, scale)


def fit_highest(
    windows: Sequence[Tensor], known: Sequence[Tensor], y: Tensor, hard: Tensor, rounds: int = ROUNDS
) -> Linear:
    """A probe over windows: how much nearer they are to those of harmful prompts than to those of harmless ones.

    `windows`: of each prompt `[W, D]`; `known`: the label of each of them `[W]`, 1 harmful, or UNKNOWN; those of the
    prompts `[N]`; `hard` `[N]`, bool. Of a harmful prompt none of whose windows is known to be harmful, those that a
    probe of the others finds highest are taken for harmful in the next round.
    """
    counts = torch.tensor([len(each) for each in windows])
    owners = torch.repeat_interleave(torch.arange(len(windows)), counts)
    begins = (counts.cumsum(0) - counts).tolist()
    x, labels = torch.cat([*windows]), torch.cat([*known]).long()
    probe = _of_windows(x, labels, hard[owners] & (labels == y[owners]))
    open_rows = [row for row, of in enumerate(known) if y[row] == 1 and not bool((of == 1).any())]
    for _ in range(rounds if open_rows else 0):
        found = labels.clone()
        for row in open_rows:
            found[begins[row] + probe(windows[row]).topk(min(HIGHEST, len(windows[row]))).indices] = 1
        probe = _of_windows(x, found, hard[owners] & (found == y[owners]))
    return probe


def _of_windows(x: Tensor, labels: Tensor, hard: Tensor) -> Linear:
    kept = labels != UNKNOWN
    return fit_gaussians(x[kept], labels[kept], weights_of(labels[kept], hard[kept]))


def shrunk_covariance(rest: Tensor, weights: Tensor, shrinkage: float) -> Tensor:
    """The covariance `[D, D]` of what is left of states `[N, D]` without their means, towards equal coordinates."""
    covariance = rest.T @ (weights[:, None] * rest)
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * float(weights @ (rest**2).mean(1)))
    return covariance


def fit_windows(
    windows: Sequence[Tensor], y: Tensor, weights: Tensor, tick: Callable[[int], None] = lambda _: None
) -> Linear:
    """A probe over windows from labels of whole prompts: the windows that look harmful weigh most.

    `windows`: of each prompt `[W, D]`, labels and weights `[N]`. The loss of a prompt is
    `sum_w softmax(z)_w BCE(z_w, y)`: harmful prompts push up the windows that already look harmful, harmless ones push
    down the most suspicious (Constitutional Classifiers++, arXiv 2601.04603).
    """
    owners = torch.repeat_interleave(torch.arange(len(windows)), torch.tensor([len(each) for each in windows]))
    x = torch.cat([each.float() for each in windows])
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / scale
    labels = y.float()
    weight, bias = torch.zeros(z.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=5e-2)
    for _ in range(STEPS):
        values = z @ weight + bias
        grown = values.detach().clamp(-30, 30).exp()
        share = grown / torch.zeros(len(windows)).index_add(0, owners, grown)[owners]
        losses = cross_entropy(values, labels[owners], reduction="none")
        optimizer.zero_grad()
        (weights[owners] * share * losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tick(1)
    return Linear.folded(weight.detach(), bias.detach(), mean, scale)
