"""A Refusal Head in closed form that hardly moves harmless states, after AlphaSteer's null space (arXiv 2506.07022).

It reads of a state only what lies in the directions in which the states of harmless answers are shortest, and changes
it, by ridge regression, as far as the refusal's next token needs to lead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.backbone import Backbone
from steering.data.questions import Question
from steering.fitting.offline import batches, decoded, open_rows
from steering.fitting.training import Forced
from steering.head import RefusalHead

SHARE = 0.5  # of all directions, those that are read
LEAD = 15.0  # of the refusal's token over all others, in logits
RIDGE = 10.0
HARMLESS_TOKENS = 32  # of an answer to a harmless prompt

_ROWS = 256  # whose logits are computed at once

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def harmless_states(backbone: Backbone, questions: Sequence[Question], tick: Callable[[int], None]) -> Tensor:
    """Final states `[M, d]`, fp32, on the CPU, in every place of the unguarded model's greedy answers."""
    found: list[Tensor] = []
    for group in batches(questions, backbone.max_rows):
        with open_rows(backbone, group, HARMLESS_TOKENS) as rows:
            hidden = backbone.prefill(rows)
            plain = torch.zeros(len(rows), device=hidden.device)
            found += [
                step.hidden.float().cpu() for step in decoded(backbone, rows, hidden, None, plain, HARMLESS_TOKENS)
            ]
        tick(len(group))
    return torch.cat(found)


def nullspace_head(forced: Forced, harmless: Tensor, logits: Logits) -> RefusalHead:
    """The head that at eps 1 brings forced refusals into the lead. `harmless` `[M, d]`: states that it leaves alone.

    `logits`: `[N, d] -> [N, V]`, differentiable.
    """
    hidden = forced.hidden.double()
    states = harmless.to(hidden.device, torch.float64)
    quiet = torch.linalg.eigh(states.T @ states).eigenvectors[:, : round(SHARE * states.shape[1])]
    wanted = torch.cat(
        [
            least_change(forced.hidden[at : at + _ROWS], forced.targets[at : at + _ROWS], logits)
            for at in range(0, len(hidden), _ROWS)
        ]
    )
    read = hidden @ quiet
    ridge = RIDGE * torch.eye(read.shape[1], dtype=read.dtype, device=read.device)
    change = torch.linalg.solve(read.T @ read + ridge, read.T @ wanted.double())
    head = RefusalHead(hidden.shape[1]).to(hidden.device)
    with torch.no_grad():
        head.weight.copy_((quiet @ change).T)
    return head.requires_grad_(requires_grad=False)


def least_change(hidden: Tensor, targets: Tensor, logits: Logits) -> Tensor:
    """The shortest change of each state `[N, d]` by which its token, of `targets` `[N]`, leads; 0 where it does.

    It is along the gradient of the lead over the next best, which may be another one then.
    """
    with torch.enable_grad():
        states = hidden.detach().requires_grad_()
        found = logits(states).float()
        own = found.gather(1, targets[:, None])[:, 0]
        lead = own - found.scatter(1, targets[:, None], float("-inf")).amax(1)
        (gradient,) = torch.autograd.grad(lead.sum(), states)
    lacking = (LEAD - lead.detach()).clamp_min(0.0)
    return gradient * (lacking / gradient.square().sum(1).clamp_min(1e-12))[:, None]
