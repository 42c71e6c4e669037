"""The Refusal Head in closed form: it brings refusals into the lead, and leaves harmless states where they are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from steering.fitting.nullspace import LEAD, RIDGE, SHARE, least_change, nullspace_head
from steering.fitting.training import Forced
from tests.reference import training as reference

WIDTH = 24
TOKENS = [3, 17, 5]


@pytest.fixture(scope="module")
def vocabulary() -> Tensor:
    return normalize(torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3)))


@pytest.fixture(scope="module")
def harmless() -> Tensor:
    """States that lie in half of the directions, but for a little."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.cat([torch.full((WIDTH // 2,), 5.0), torch.full((WIDTH // 2,), 0.02)])
    return torch.randn(400, WIDTH, generator=generator) * spread


def said_by(vocabulary: Tensor, hidden: Tensor) -> Tensor:
    """The logits of states."""
    return hidden @ vocabulary.T


def forced(prompts: int, seed: int) -> Forced:
    """Places of a refusal after harmful prompts, each with a state of its own in all directions."""
    places = 3 * torch.randn(len(TOKENS), WIDTH, generator=torch.Generator().manual_seed(8))
    noise = torch.randn(prompts, len(TOKENS), WIDTH, generator=torch.Generator().manual_seed(seed))
    return Forced.of(places + 0.2 * noise, TOKENS)


def test_refusals_lead_and_harmless_states_stay(vocabulary: Tensor, harmless: Tensor) -> None:
    logits = partial(said_by, vocabulary)
    head = nullspace_head(forced(60, 0), harmless, logits)
    fresh = forced(20, 1)
    said = logits(head.steer(fresh.hidden, torch.ones(len(fresh.hidden)))).argmax(1)
    assert bool((said == fresh.targets).all())
    moved = head.steer(harmless, torch.ones(len(harmless))) - harmless
    assert float(moved.norm(dim=1).max()) < 0.02 * float(harmless.norm(dim=1).mean())
    assert bool((logits(harmless + moved).argmax(1) == logits(harmless).argmax(1)).float().mean() > 0.97)


def test_it_is_the_published_formula_with_its_pseudo_inverse(vocabulary: Tensor, harmless: Tensor) -> None:
    logits = partial(said_by, vocabulary)
    train = forced(30, 0)
    wanted = least_change(train.hidden, train.targets, logits)
    expected = reference.nullspace_matrix(train.hidden, harmless, wanted, SHARE, RIDGE)
    head = nullspace_head(train, harmless, logits)
    assert torch.allclose(head.weight.T, expected.float(), atol=1e-4)


def test_the_least_change_gives_the_lead_that_is_asked_for_along_the_shortest_way() -> None:
    vocabulary = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    hidden, targets = torch.tensor([[-2.0, 5.0, 7.0], [LEAD, 1.0, 1.0]]), torch.tensor([0, 0])
    change = least_change(hidden, targets, lambda states: states @ vocabulary.T)
    # Of two tokens the lead is twice the first number; the second state has it already.
    assert change.tolist() == [[LEAD / 2 + 2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
