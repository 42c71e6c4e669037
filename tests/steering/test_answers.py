"""The reader of answers: against a slow one, one score that only rises, where numbers are missing, in a bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from steering.answers import AnswerReader
from steering.bundle import load_guard, save_bundle
from steering.errors import BundleError
from steering.head import RefusalHead
from steering.manifest import Manifest
from steering.policy import Mode, is_flagged
from steering.prober import Prober
from steering.readers import Conversation, LastToken
from steering.scale import Scale
from steering.specs import AnswersSpec, Threshold
from tests.reference import answers as reference
from tests.steering.test_bundle import INFO, edit, manifest
from tests.steering.test_readers import conversation, whole

SPEC = AnswersSpec(
    layers=[1, 3],
    window=4,
    thresholds=[Threshold(target_fpr=0.01, threshold=0.8, samples=300)],
    threshold=0.8,
    figures={"auroc": 0.97},
)
SCALE = Scale.of(np.random.default_rng(0).normal(size=500))


def reader(window: int = 4, hidden_size: int = 16) -> AnswerReader:
    """One with random weights."""
    torch.manual_seed(0)
    made = AnswerReader(hidden_size, [1, 3], window)
    made.weight.normal_(std=0.2)
    made.prompt_weight.fill_(0.3)
    made.bias.fill_(-0.1)
    made.calibrate(SCALE, 1.5, -4.0)
    return made


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 40])
@pytest.mark.parametrize("prompt_score", [0.2, 1 - 1e-9])
def test_read_token_by_token_an_answer_has_the_score_of_all_at_once(tokens: int, prompt_score: float) -> None:
    made, states = reader(), torch.randn(tokens, 2, 16)
    watch = made.watch(prompt_score)
    for value in made.read(states)[:, 0].tolist():
        watch.push(value)
    slow = reference.numbers(
        states.flatten(1).tolist(), made.weight[0].tolist(), float(made.bias), float(made.prompt_weight), prompt_score
    )
    raw = reference.raw(slow, 4)
    assert watch.raw == pytest.approx(raw, abs=1e-5)
    assert watch.score == pytest.approx(reference.score(raw, SCALE, 1.5, -4.0), abs=1e-5)
    assert made.raw(made.read(states)[:, 0].tolist(), prompt_score) == watch.raw


@given(st.lists(st.floats(-20, 20), max_size=40), st.integers(1, 6))
def test_the_score_never_falls(values: list[float], window: int) -> None:
    watch = reader(window).watch(0.5)
    scores = [0.0, *(watch.push(value) for value in values)]
    assert scores == sorted(scores)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert watch.tokens == len(values)


def test_one_window_alone_does_not_count_and_two_in_a_row_do() -> None:
    watch = reader(window=1).watch(0.5)
    for value in (-9.0, -9.0, 9.0, -9.0):
        alone = watch.push(value)
    assert alone < 0.1
    watch.push(9.0)
    assert watch.push(9.0) > 0.9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_flagged_from_then_on(value: float) -> None:
    watch = reader().watch(0.5)
    watch.push(0.0)
    assert is_flagged(watch.push(value), 1.0)
    for _ in range(10):
        assert is_flagged(watch.push(0.0), 1.0)
    assert is_flagged(reader().watch(math.nan).push(0.0), 1.0)


def test_the_prompt_s_score_counts_within_bounds() -> None:
    made = reader()
    scores = [made.raw([0.0] * 5, prompt) for prompt in (0.0, 1e-12, 0.3, 0.7, 1.0 - 1e-12, 1.0)]
    assert scores == sorted(scores)
    assert scores[0] == scores[1] < scores[2] < scores[3] < scores[4] == scores[5]


@pytest.mark.parametrize(
    ("described", "prompts"), [(manifest, LastToken(Prober(16))), (whole, conversation(16))], ids=["last", "whole"]
)
def test_a_bundle_keeps_its_reader_of_answers(
    tmp_path: Path, described: Callable[..., Manifest], prompts: LastToken | Conversation
) -> None:
    made = reader()
    written = described(format_version=3, answers=SPEC.model_dump())
    save_bundle(tmp_path, written, prompts, RefusalHead(16), {}, made)
    guard = load_guard(tmp_path, INFO)
    assert guard.answers is not None
    assert (guard.answers.layers, guard.answers.window) == ((1, 3), 4)
    assert guard.manifest.answers == SPEC
    states = torch.randn(6, 2, 16)
    assert torch.equal(guard.answers.read(states), made.read(states))
    assert guard.answers.score_of(1.0) == made.score_of(1.0)


def test_bundles_without_it_say_what_they_always_said() -> None:
    for made in (manifest(), whole()):
        assert "answers" not in made.model_dump()
    assert "conversation" not in manifest().model_dump()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format_version": 3}, "format_version 3 at last_prompt_token without conversation and without answers"),
        ({"answers": SPEC.model_dump()}, "format_version 1 at last_prompt_token without conversation and with answers"),
    ],
)
def test_a_format_that_does_not_fit_what_is_there_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        manifest(**changes)


def test_a_layer_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    written = manifest(format_version=3, answers=SPEC.model_dump())
    save_bundle(tmp_path, written, LastToken(Prober(16)), RefusalHead(16), {}, reader())
    edit(tmp_path, lambda data: data["answers"].update(layers=[1, 7]))
    with pytest.raises(BundleError, match="layer 7"):
        load_guard(tmp_path, INFO)


@pytest.mark.parametrize("made", [manifest, whole])
def test_a_bundle_that_reads_prompts_alone_cannot_watch_answers(made: Callable[[], Manifest]) -> None:
    assert made().output(Mode.OFF).mode is Mode.OFF
    with pytest.raises(ValueError, match=r"^output\.mode block needs a guard bundle that reads answers, .* alone$"):
        made().output(Mode.BLOCK)
