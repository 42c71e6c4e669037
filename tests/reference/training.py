"""The Refusal Head trained the obvious way: every epoch runs the backbone again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from steering.fitting.training import Forced, Optimisation
from steering.head import RefusalHead


def fit_head(
    train: Callable[[], Forced],
    held_out: Callable[[], Forced],
    logits: Callable[[Tensor], Tensor],
    hidden_size: int,
    optimisation: Optimisation,
) -> list[float]:
    """Held-out loss per epoch. `train` and `held_out` run the backbone; `logits`: `[M, d] -> [M, V]`."""
    torch.manual_seed(optimisation.seed)
    head = RefusalHead(hidden_size)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
    )
    generator = torch.Generator().manual_seed(optimisation.seed)

    def loss(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(hidden + head(hidden)).float(), targets)

    losses: list[float] = []
    for _ in range(optimisation.epochs):
        places = train()
        for rows in torch.split(torch.randperm(len(places.targets), generator=generator), optimisation.batch):
            optimizer.zero_grad()
            loss(places.hidden[rows], places.targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            fresh = held_out()
            losses.append(float(loss(fresh.hidden, fresh.targets)))
    return losses


def nullspace_matrix(harmful: Tensor, harmless: Tensor, wanted: Tensor, share: float, ridge: float) -> Tensor:
    """`P (X^T X + ridge P^T P)^+ X^T R`, X the harmful states projected by P, R what they are to change by."""
    _, _, right = torch.linalg.svd(harmless.double(), full_matrices=True)
    lowest = right[len(right) - round(share * len(right)) :].T
    projected = lowest @ lowest.T
    x = harmful.double() @ projected
    inverse = torch.linalg.pinv(x.T @ x + ridge * projected.T @ projected)
    found: Tensor = projected @ inverse @ x.T @ wanted.double()
    return found
