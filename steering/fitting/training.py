"""Fitting the prober and the Refusal Head on states that were collected once; the backbone never runs in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steering.calibration import fit_temperature
from steering.fitting.probes import weights_of
from steering.head import RefusalHead
from steering.prober import HIDDEN, Prober

CERTAIN = 1e-4  # nats a token: a head that says refusals as surely as this learns no more
SPARED_FACTOR = 2  # states of harmless answers for each of refusals

Tick = Callable[[int], None]  # called with the number of epochs that are done


@dataclass(frozen=True)
class States:
    """Labelled states of one layer: `x` `[N, d]`, `y` `[N]` with 1 for toxic, `hard` `[N]` bool; None: none is hard."""

    x: Tensor
    y: Tensor
    hard: Tensor | None = None

    @property
    def weights(self) -> Tensor | None:
        """How much each row counts `[N]`, where some are hard; they sum to what equal classes do without."""
        if self.hard is None or not self.hard.any():
            return None
        return weights_of(self.y, self.hard) * 2 * (self.y == 0).sum()


@dataclass(frozen=True)
class Optimisation:
    """How long and how fast to fit; training ends early once the held-out loss has not fallen for `patience` epochs."""

    epochs: int = 60
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 8
    seed: int = 0


def fit_prober(
    train: States,
    held_out: States,
    *,
    hidden: int = HIDDEN,
    optimisation: Optimisation = Optimisation(),
    tick: Tick = lambda _: None,
) -> tuple[Prober, list[float]]:
    """A calibrated prober and its held-out loss per epoch: BCE with logits, classes weighted to equal mass.

    Of each class its hard negatives weigh `HARD_SHARE`: there are never many, and they are what is to be told apart.
    """
    torch.manual_seed(optimisation.seed)
    prober = Prober(train.x.shape[1], hidden)
    mean, scale = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    x, held_x = (train.x - mean) / scale, (held_out.x - mean) / scale
    weight = (train.y == 0).sum() / (train.y == 1).sum().clamp_min(1)

    def entropy(logits: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        balance = weight if weights is None else None
        return F.binary_cross_entropy_with_logits(logits, y.float(), weight=weights, pos_weight=balance)

    weights, held_weights = train.weights, held_out.weights

    def loss(rows: Tensor) -> Tensor:
        return entropy(prober(x[rows]), train.y[rows], None if weights is None else weights[rows])

    def held_out_loss() -> Tensor:
        return entropy(prober(held_x), held_out.y, held_weights)

    losses = _descend(prober, len(x), loss, held_out_loss, optimisation, tick)
    with torch.no_grad():
        prober.temperature.fill_(fit_temperature(prober(held_x), held_out.y))
    prober.fold(mean, scale)
    return prober.requires_grad_(requires_grad=False), losses


@dataclass(frozen=True)
class Forced:
    """Places in teacher-forced refusals: hidden states `[M, d]` and the token that follows each, `[M]`."""

    hidden: Tensor
    targets: Tensor

    @classmethod
    def of(cls, hidden: Tensor, ids: Sequence[int]) -> Forced:
        """The places of one refusal `ids` `[T]` after each of `N` prompts; hidden `[N, T, d]`."""
        return cls(hidden.flatten(0, 1), torch.tensor(ids, device=hidden.device).repeat(len(hidden)))

    @classmethod
    def join(cls, parts: Sequence[Forced]) -> Forced:
        """All places of several refusals."""
        return cls(torch.cat([part.hidden for part in parts]), torch.cat([part.targets for part in parts]))


@dataclass(frozen=True)
class Spared:
    """Final states of harmless answers `[M, d]` whose next tokens a head is to leave as they are.

    `weight`: of their divergence, in nats a token, beside the cross-entropy of the refusals.
    """

    train: Tensor
    held_out: Tensor
    weight: float = 10.0

    @classmethod
    def of(cls, states: Tensor) -> Spared:
        """States in the order of their prompts, of which the last tenth is held out."""
        kept = len(states) - max(1, len(states) // 10)
        return cls(states[:kept], states[kept:])


def fit_head(
    train: Forced,
    held_out: Forced,
    logits: Callable[[Tensor], Tensor],
    *,
    rank: int | None = None,
    spared: Spared | None = None,
    optimisation: Optimisation = Optimisation(epochs=30),
    tick: Tick = lambda _: None,
) -> tuple[RefusalHead, list[float]]:
    """A head that says the refusals at eps 1 and leaves the `spared` states alone, and its held-out loss per epoch.

    The hidden states do not depend on W, which sits after the last norm, so they are computed once.
    `logits`: `[M, d] -> [M, V]`, the backbone's.
    """
    torch.manual_seed(optimisation.seed)
    head = RefusalHead(train.hidden.shape[-1], rank).to(train.hidden.device)
    generator = torch.Generator().manual_seed(optimisation.seed)
    batch = optimisation.batch

    def loss(rows: Tensor) -> Tensor:
        said = _said(head, train.hidden[rows], train.targets[rows], logits)
        if spared is None:
            return said
        some = torch.randint(len(spared.train), (SPARED_FACTOR * batch,), generator=generator)
        return said + spared.weight * _changed(head, spared.train[some], logits)

    def held_out_loss() -> Tensor:
        said = _all_said(head, held_out, logits, batch)
        if spared is None:
            return said
        parts = [_changed(head, some, logits) * len(some) for some in torch.split(spared.held_out, batch)]
        return said + spared.weight * torch.stack(parts).sum() / len(spared.held_out)

    losses = _descend(head, len(train.targets), loss, held_out_loss, optimisation, tick, CERTAIN)
    return head.requires_grad_(requires_grad=False), losses


@torch.no_grad()
def head_loss(head: RefusalHead, forced: Forced, logits: Callable[[Tensor], Tensor]) -> float:
    """The mean cross-entropy of refusals under a head, at eps 1."""
    return float(_all_said(head, forced, logits, Optimisation().batch))


def _said(head: RefusalHead, hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(logits(hidden + head(hidden)).float(), targets)


def _changed(head: RefusalHead, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean divergence of the next tokens under a head, at eps 1, from those without it."""
    with torch.no_grad():
        before = logits(hidden).float().log_softmax(-1)
    after = logits(hidden + head(hidden)).float().log_softmax(-1)
    return F.kl_div(after, before, log_target=True, reduction="batchmean")


def _all_said(head: RefusalHead, forced: Forced, logits: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """In batches: the logits of all places at once are gigabytes with a large vocabulary."""
    total = len(forced.targets)
    rows = [slice(start, start + batch) for start in range(0, total, batch)]
    sums = [_said(head, forced.hidden[at], forced.targets[at], logits) * len(forced.targets[at]) for at in rows]
    return torch.stack(sums).sum() / total


def _descend(
    module: nn.Module,
    size: int,
    loss: Callable[[Tensor], Tensor],
    held_out_loss: Callable[[], Tensor],
    optimisation: Optimisation,
    tick: Tick,
    enough: float = 0.0,
) -> list[float]:
    """AdamW with early stop, also where the held-out loss is `enough`; the module ends with its best weights."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
    )
    generator = torch.Generator().manual_seed(optimisation.seed)
    losses: list[float] = []
    best = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for _ in range(optimisation.epochs):
        for rows in _batches(size, optimisation.batch, generator):
            optimizer.zero_grad()
            loss(rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            losses.append(float(held_out_loss()))
        tick(1)
        if losses[-1] == min(losses):
            best = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        if losses[-1] < enough or len(losses) - losses.index(min(losses)) > optimisation.patience:
            break
    tick(optimisation.epochs - len(losses))
    module.load_state_dict(best)
    return losses


def _batches(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(size, generator=generator)
    for start in range(0, size, batch):
        yield order[start : start + batch]
