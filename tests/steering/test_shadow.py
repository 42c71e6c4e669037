"""A shadow judges by its own threshold and reads its own layers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from steering.policy import Mode, Verdict
from steering.shadow import Shadow
from tests.server.fakes import as_any


def guard(*layers: int) -> SimpleNamespace:
    return SimpleNamespace(tapped=layers[0] if len(layers) == 1 else layers)


def shadow_of(reader: SimpleNamespace, threshold: float = 0.5) -> Shadow:
    return Shadow("candidate", as_any(reader), threshold)


def test_every_row_is_judged_by_its_own_score_unless_its_policy_scores_nothing() -> None:
    found = shadow_of(guard(1)).judge([0.4, 0.5, float("nan"), 0.9], [Mode.STEER, Mode.BLOCK, Mode.MONITOR, Mode.OFF])
    assert [None if each is None else each.verdict for each in found] == [
        Verdict.PASS,
        Verdict.MONITORED,
        Verdict.MONITORED,
        None,
    ]
    assert {each.shadow for each in found if each is not None} == {"candidate"}
    assert {each.eps for each in found if each is not None} == {0.0}


@pytest.mark.parametrize("acting", [(2,), (2, 4)])
@pytest.mark.parametrize("own", [(1,), (2,), (1, 3)])
def test_each_of_two_bundles_gets_the_states_of_its_layers(acting: tuple[int, ...], own: tuple[int, ...]) -> None:
    first = guard(*acting)
    shadow = shadow_of(guard(*own))
    tapped = shadow.tapped_with(as_any(first))
    assert list(tapped if not isinstance(tapped, int) else [tapped]) == [*acting, *own]
    layers = torch.randn(5, 3, 8)
    states = torch.stack([layers[layer] for layer in (*acting, *own)], dim=1)
    for found, wanted in zip(shadow.apart(states, as_any(first)), (acting, own), strict=True):
        assert torch.equal(found, torch.cat([layers[layer] for layer in wanted], dim=1))
        assert found.is_contiguous()


def test_a_second_threshold_taps_nothing_more() -> None:
    acting = guard(3)
    shadow = replace(shadow_of(acting), threshold=0.1)
    states = torch.randn(2, 8)
    assert shadow.tapped_with(as_any(acting)) == 3
    assert all(found is states for found in shadow.apart(states, as_any(acting)))
