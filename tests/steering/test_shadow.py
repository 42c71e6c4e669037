"""A shadow judges by its own threshold and reads its own layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from steering.policy import Verdict
from steering.shadow import Beside, Shadow
from tests.server.fakes import as_any


class Sums:
    """Reads the sum of each layer's state."""

    def __init__(self, *layers: int) -> None:
        self.layers = layers
        self.width = len(layers)

    def read(self, states: Tensor) -> Tensor:
        return states.sum(-1)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [(0.4, Verdict.PASS), (0.5, Verdict.MONITORED), (float("nan"), Verdict.MONITORED), (0.9, Verdict.MONITORED)],
)
def test_a_score_is_judged_by_the_shadows_own_threshold(score: float, verdict: Verdict) -> None:
    found = Shadow("candidate", as_any(SimpleNamespace()), 0.5).judge(score)
    assert (found.verdict, found.shadow, found.eps) == (verdict, "candidate", 0.0)


@pytest.mark.parametrize("acting", [(2,), (2, 4)])
@pytest.mark.parametrize("own", [(1,), (2,), (1, 3)])
def test_each_of_two_bundles_reads_the_states_of_its_layers(acting: tuple[int, ...], own: tuple[int, ...]) -> None:
    first, second = Sums(*acting), Sums(*own)
    beside = Beside(as_any(first), as_any(second))
    assert (beside.layers, beside.width) == ([*acting, *own], len(acting) + len(own))
    layers = torch.randn(5, 3, 8)
    states = torch.stack([layers[layer] for layer in (*acting, *own)], dim=1)
    for found, wanted in zip(beside.apart(beside.read(states)), (acting, own), strict=True):
        assert torch.equal(found, torch.stack([layers[layer].sum(-1) for layer in wanted], dim=1))


def test_a_shadow_that_fails_to_read_leaves_the_acting_guard_its_numbers() -> None:
    failing = SimpleNamespace(layers=(1,), width=2, read=lambda _: 1 / 0)
    beside, states = Beside(as_any(Sums(0)), as_any(failing)), torch.randn(3, 2, 8)
    own, shadowed = beside.apart(beside.read(states))
    assert torch.equal(own, states[:, :1].sum(-1))
    assert shadowed.shape == (3, 2)
    assert shadowed.isnan().all()
