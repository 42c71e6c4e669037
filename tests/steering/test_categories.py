"""Categories of harm: their scores, the bundle that keeps their reader, and what a policy does with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steering.bundle import load_guard, save_bundle
from steering.categories import CategoryReader, against_all
from steering.errors import BundleError
from steering.head import RefusalHead
from steering.manifest import Manifest, load_manifest
from steering.policy import CategoryScore, Mode, Policy, Verdict, decide
from steering.prober import Prober
from steering.readers import LastToken
from tests.layouts import layout_of
from tests.steering.test_bundle import INFO, edit, manifest

NAMES = ["weapons", "fraud"]


def reader(inputs: int = 16, *, other: bool = True) -> CategoryReader:
    torch.manual_seed(0)
    made = CategoryReader(inputs, NAMES, [0.5, 0.5], other=other)
    made.weight.normal_()
    made.calibrate([0.5] * 2, [-1.0] * 2, [0.5] * 2)
    return made


def told(**changes: Any) -> Manifest:
    """The manifest of a bundle with categories."""
    named = [{"name": name, "threshold": 0.5, "auroc": 0.9, "recall": 0.8, "samples": 20} for name in NAMES]
    own = {"format_version": 4, "categories": {"categories": named, "other": True, "figures": {"macro_auroc": 0.9}}}
    return manifest(**{**own, **changes})


def test_what_speaks_for_a_category_is_told_against_all_others_and_harmless() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4)) * 3
    for row, found in zip(values, against_all(values), strict=True):
        likely = np.exp([*row, 0.0])
        shares = likely / likely.sum()
        assert found == pytest.approx(np.log(shares[:4] / (1 - shares[:4])))
    far = against_all(np.array([[900.0, -900.0]]))
    assert np.isfinite(far).all()


def test_any_turn_raises_a_category_and_its_own_alone() -> None:
    made = reader()
    quiet, weapons = [-9.0, -9.0, -9.0], [9.0, 0.0, 0.0]
    alone = made.scores(np.array([quiet]))
    harm = made.scores(np.array([quiet, weapons, quiet]))
    assert [each.name for each in harm] == NAMES
    assert [each.reached for each in alone] == [False, False]
    assert [each.reached for each in harm] == [True, False]
    assert harm[0].score > 0.9
    assert all(each.reached for each in made.scores(np.full((1, 3), np.nan)))


def test_a_bundle_keeps_its_categories_and_a_prompt_scores_as_before(tmp_path: Path) -> None:
    prober, categories = Prober(16), reader()
    save_bundle(tmp_path / "without", manifest(), LastToken(prober), RefusalHead(16), {})
    save_bundle(tmp_path / "with", told(), LastToken(prober), RefusalHead(16), {}, categories=categories)
    without, guard = (load_guard(tmp_path / folder, INFO) for folder in ("without", "with"))
    assert (without.width, guard.width) == (1, 4)
    assert load_manifest(tmp_path / "with").category_names == NAMES
    states, layout = torch.randn(6, 1, 16), layout_of(6, 2)
    notes = guard.read(states)
    assert torch.equal(notes[:, :1], without.read(states))
    assert guard.score(notes, layout) == without.score(without.read(states), layout)
    assert guard.categorise(notes, layout) == categories.scores(categories.read(states)[-1:].double().numpy())
    assert without.categorise(without.read(states), layout) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 3}, "format_version 3 .* and with categories"),
        ({"categories": None}, "format_version 4 .* without categories"),
        ({"categories": {"categories": [], "other": False}}, "at least 1 item"),
    ],
)
def test_a_bundle_that_does_not_fit_together_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_bundle(tmp_path, told(), LastToken(Prober(16)), RefusalHead(16), {}, categories=reader())
    edit(tmp_path, lambda data: data.update(changes))
    with pytest.raises(BundleError, match=words):
        load_guard(tmp_path, INFO)


@pytest.mark.parametrize("name", ["unsafe", "fraud", "", "x" * 65])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    named = [{"name": each, "threshold": 0.5, "auroc": 0.9, "recall": 0.8, "samples": 20} for each in (name, "fraud")]
    with pytest.raises(ValueError, match="categories"):
        told(categories={"categories": named, "other": False})


# policies ----------------------------------------------------------------------------------------------------------


def found(*reached: str) -> list[CategoryScore]:
    return [CategoryScore(name, 0.9 if name in reached else 0.1, name in reached) for name in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("mode", "reached", "verdict"),
    [
        (Mode.STEER, (), Verdict.STEERED),  # of no category: the policy's mode
        (Mode.STEER, ("a",), Verdict.BLOCKED),
        (Mode.STEER, ("b",), Verdict.MONITORED),
        (Mode.STEER, ("c",), Verdict.STEERED),  # nothing is said of it
        (Mode.STEER, ("a", "b", "c"), Verdict.BLOCKED),  # the strictest
        (Mode.STEER, ("b", "c"), Verdict.STEERED),
        (Mode.MONITOR, ("b", "c"), Verdict.MONITORED),
        (Mode.BLOCK, ("b",), Verdict.MONITORED),
        (Mode.BLOCK, ("b", "c"), Verdict.BLOCKED),
    ],
)
def test_the_strictest_of_its_categories_decides_on_a_flagged_request(
    mode: Mode, reached: tuple[str, ...], verdict: Verdict
) -> None:
    policy = Policy("p", mode, 0.5, 2.0, "No.", categories=(("a", Mode.BLOCK), ("b", Mode.MONITOR)))
    quiet, flagged = decide([0.4, 0.6], [policy] * 2, [found(*reached)] * 2)
    assert (quiet.verdict, quiet.kinds) == (Verdict.PASS, [])
    assert (flagged.verdict, flagged.kinds) == (verdict, list(reached))
    assert flagged.eps == (2.0 if verdict is Verdict.STEERED else 0.0)
    assert verdict in policy.possible_verdicts


def test_what_cannot_be_read_is_of_every_category() -> None:
    policy = Policy("p", Mode.MONITOR, 0.5, 2.0, "No.", categories=(("weapons", Mode.BLOCK),))
    scores = reader().scores(np.full((1, 3), np.nan))
    assert decide([math.nan], [policy], [scores])[0].verdict is Verdict.BLOCKED


def test_a_policy_checks_what_its_categories_need() -> None:
    with pytest.raises(ValueError, match="eps must be more than 0"):
        Policy("p", Mode.MONITOR, 0.5, 0.0, "No.", categories=(("a", Mode.STEER),))
    with pytest.raises(ValueError, match="refusal"):
        Policy("p", Mode.MONITOR, 0.5, 1.0, "", categories=(("a", Mode.BLOCK),))
    with pytest.raises(ValueError, match="categories needs a mode other than off"):
        Policy("p", Mode.OFF, 0.5, 1.0, "No.", categories=(("a", Mode.BLOCK),))
