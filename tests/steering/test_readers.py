"""What readers make of a prompt's numbers: against slow ones, and where a number is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.layout import Layout
from steering.bundle import load_guard, save_bundle
from steering.errors import BundleError
from steering.head import RefusalHead
from steering.manifest import Manifest
from steering.policy import is_flagged
from steering.prober import Prober
from steering.readers import Cell, Conversation, LastToken, highest_mean, window_means
from steering.scale import Scale
from steering.specs import CellSpec, ConversationSpec
from tests.layouts import layout_of
from tests.steering.test_bundle import INFO, edit, manifest

ANY_LENGTH = {"has_image": False, "most_tokens": None, "samples": 1}
CELLS = [Cell(False, 20, 50), Cell(False, None, 50)]


def conversation(inputs: int = 16) -> Conversation:
    """One with random probes; in its second cell everything is ten times less unusual."""
    torch.manual_seed(0)
    made = Conversation(inputs, CELLS)
    made.weight.normal_()
    made.bias.normal_()
    values = np.random.default_rng(0).normal(size=500)
    near, far = Scale.of(values), Scale.of(10 * values)
    made.calibrate([[near] * 3, [far] * 3], 1.5, -4.0)
    return made


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 9))
def test_windows_are_means_of_neighbours_within_a_run(lengths: list[int], window: int) -> None:
    values = np.random.default_rng(1).normal(size=sum(lengths) + len(lengths))
    runs, at = [], 0
    for length in lengths:
        runs.append((at, at + length))
        at += length + 1  # a control token between
    slow = []
    for begin, end in runs:
        size = min(window, end - begin)
        slow += [values[start : start + size].mean() for start in range(begin, end - size + 1)]
    np.testing.assert_allclose(window_means(values, runs, window), slow, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_highest_windows_count(count: int) -> None:
    values = np.array([0.5, -1.0, 3.0, 2.0])[:count]
    assert highest_mean(values) == pytest.approx(np.mean(sorted(values)[-3:]))


def test_any_turn_and_any_window_raises_the_score() -> None:
    reader = conversation()
    notes = np.zeros((30, 2))
    layout = layout_of(30, 9)
    plain = reader.score(notes, layout)
    for place, number in ((9, 0), (29, 0)):  # ends
        raised = notes.copy()
        raised[place, number] = 50.0
        assert reader.score(raised, layout) > plain
    raised = notes.copy()
    raised[12:24, 1] = 50.0
    assert reader.score(raised, layout) > plain
    elsewhere = notes.copy()
    elsewhere[5, 0] = 50.0  # no turn ends there
    assert reader.score(elsewhere, layout) == plain


def test_a_prompt_is_measured_against_its_own_cell() -> None:
    reader = conversation()
    short, long = (reader.score(np.full((count, 2), 3.0), layout_of(count)) for count in (20, 21))
    assert short > long
    pictured = layout_of(20, has_image=True)  # no cell has pictures: its length alone counts
    assert reader.score(np.full((20, 2), 3.0), pictured) == short


def test_a_prompt_with_an_answer_in_it_is_measured_against_others_that_have_one() -> None:
    reader = Conversation(16, [Cell(False, None, 50, answered=answered) for answered in (False, True)])
    assert [reader.cell(layout) for layout in (layout_of(20), layout_of(20, 9))] == [0, 1]
    assert reader.cell(layout_of(20, 9, has_image=True)) == 1  # no cell has pictures


def test_taken_together_both_numbers_raise_the_score(tmp_path: Path) -> None:
    alone, together = conversation(48), conversation(48)
    together.together = True
    scores = {}
    for name, reader in (("most", alone), ("all", together)):
        scores[name] = [reader.score_of(raw, layout_of(9)) for raw in ((2.0, -3.0), (-3.0, 2.0), (2.0, 2.0))]
    assert scores["most"][0] == scores["most"][1] == scores["most"][2]
    assert scores["all"][0] == scores["all"][1] < scores["all"][2]
    assert math.isnan(together.score_of((2.0, math.nan), layout_of(9)))
    cells = [CellSpec(**cell._asdict()) for cell in CELLS]
    spec = ConversationSpec(window=8, cells=cells, together=True).model_dump()
    about = whole(format_version=5, conversation=spec, probe_layers=[1, 2, 3])
    save_bundle(tmp_path, about, together, RefusalHead(16), {})
    notes = np.random.default_rng(4).normal(size=(30, 2))
    assert load_guard(tmp_path, INFO).score(torch.from_numpy(notes), TOLD) == together.score(notes, TOLD)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("place", [0, 9, 29])
def test_a_number_that_is_missing_is_flagged_where_it_counts(number: int, place: int) -> None:
    reader, layout = conversation(), layout_of(30, 9)
    notes = np.zeros((30, 2))
    notes[place, number] = math.nan
    counts = number == 1 or place in layout.ends
    assert math.isnan(reader.score(notes, layout)) == counts
    assert is_flagged(reader.score(notes, layout), 0.5) == counts
    last = LastToken(Prober(4)).score(np.full((3, 1), math.nan), layout_of(3))
    assert is_flagged(last, 1.0)


def test_a_prompt_of_control_tokens_alone_has_a_score() -> None:
    reader = conversation()
    assert 0.0 <= reader.score(np.zeros((2, 2)), Layout(2, [1], [], has_image=False)) <= 1.0


def test_a_token_scores_what_the_prompt_would_by_it_alone() -> None:
    reader, layout = conversation(), Layout(30, [9, 29], [(0, 9), (11, 30)], has_image=False)
    notes = np.random.default_rng(3).normal(size=(30, 2))
    found = reader.token_scores(notes, layout)
    for token in range(30):
        windows = [
            notes[at : at + 8, 1].mean()
            for begin, end in layout.runs
            for at in range(begin, end - 7)
            if at <= token < at + 8
        ]
        end = notes[token, 0] if token in layout.ends else -math.inf
        assert found.scores[token] == pytest.approx(reader.score_of((end, max(windows, default=-math.inf)), layout))
    assert found.ends == layout.ends


def test_what_counted_is_the_most_unusual_end_or_the_highest_windows() -> None:
    reader, layout = conversation(), layout_of(30, 9)
    notes = np.zeros((30, 2))
    notes[9, 0] = 50.0
    assert reader.token_scores(notes, layout).counted == [(9, 10)]
    notes[9, 0], notes[12:20, 1] = 0.0, 50.0
    found = reader.token_scores(notes, layout)
    assert found.counted == [(11, 19), (12, 20), (13, 21)]
    assert int(np.argmax(found.scores)) in range(11, 21)


def test_of_the_last_token_s_reader_the_last_token_counts() -> None:
    notes, layout = np.array([[0.0], [math.nan], [2.0]]), layout_of(3, 1)
    reader = LastToken(Prober(4))
    found = reader.token_scores(notes, layout)
    assert found.scores[0] == 0.5
    assert math.isnan(found.scores[1])
    assert found.scores[2] == reader.score(notes, layout)
    assert (found.ends, found.counted) == ([1, 2], [(2, 3)])


APART = [*CELLS, Cell(False, None, 50, told=True)]
TOLD = Layout(30, [29], [(0, 9), (11, 20), (21, 30)], has_image=False, told=[(11, 20)])


def test_what_the_template_says_counts_in_no_window_of_a_reader_of_what_is_spoken(tmp_path: Path) -> None:
    layout, notes = Layout(30, [29], [(0, 9), (11, 30)], has_image=False, own=[(0, 9)]), np.zeros((30, 2))
    reader = conversation(48)
    plain = reader.score(notes, layout)
    notes[:9, 1] = 50.0
    assert reader.score(notes, layout) > plain
    reader.spoken = True
    assert reader.score(notes, layout) == plain
    spec = ConversationSpec(window=8, cells=[CellSpec(**cell._asdict()) for cell in CELLS], spoken=True).model_dump()
    save_bundle(
        tmp_path, whole(format_version=6, conversation=spec, probe_layers=[1, 2, 3]), reader, RefusalHead(16), {}
    )
    assert load_guard(tmp_path, INFO).score(torch.from_numpy(notes), layout) == plain
    notes[20:28, 1] = 50.0
    assert reader.score(notes, layout) > plain


def test_windows_of_a_long_prompt_are_measured_against_its_level(tmp_path: Path) -> None:
    def highest(reader: Conversation, told: bool, tokens: int, level: float) -> float:
        notes = np.full((tokens, 2), level)
        notes[20:30, 1] = 10.0
        run = (0, tokens)
        return reader.raw(notes, Layout(tokens, [tokens - 1], [run], has_image=False, told=[run] * told))[1]

    plain, reader = conversation(48), conversation(48)
    reader.level = 0.5
    assert highest(reader, False, 135, 4.0) == highest(plain, False, 135, 4.0) == 10.0
    assert 10.0 - 0.5 * 4.5 < highest(reader, False, 1000, 4.0) < 10.0 - 0.4 * 4.0
    assert highest(reader, False, 1000, 4.0) < highest(reader, False, 400, 4.0) < 10.0
    assert highest(reader, False, 1000, -4.0) > 10.0
    assert highest(reader, True, 1000, 4.0) == 10.0

    layout, notes = Layout(400, [399], [(0, 400)], has_image=False), np.random.default_rng(5).normal(size=(400, 2)) + 1
    notes[50:60, 1] = 9.0
    assert reader.score(notes, layout) < plain.score(notes, layout)
    assert reader.token_scores(notes, layout).scores[55] < plain.token_scores(notes, layout).scores[55]
    notes[300, 1] = math.nan
    assert math.isnan(reader.score(notes, layout))
    notes[300, 1] = 0.0
    cells = [CellSpec(**cell._asdict()) for cell in CELLS]
    spec = ConversationSpec(window=8, cells=cells, level=0.5).model_dump()
    save_bundle(
        tmp_path, whole(format_version=7, conversation=spec, probe_layers=[1, 2, 3]), reader, RefusalHead(16), {}
    )
    assert load_guard(tmp_path, INFO).score(torch.from_numpy(notes), layout) == reader.score(notes, layout)
    assert "level" not in json.dumps(whole().model_dump(mode="json")["conversation"])


def test_of_what_is_said_and_told_the_more_unusual_windows_count_beside_the_end() -> None:
    near = Scale.of(np.random.default_rng(0).normal(size=500))
    reader = Conversation(16, APART, together=True, spoken=True)
    said, told, both = (reader.joint([near] * 3, raw) for raw in ((0.0, 2.0, -2.0), (0.0, -2.0, 2.0), (0.0, 2.0, 2.0)))
    assert said == told == both
    assert reader.joint([near] * 3, (1.0, 2.0, -2.0)) > said
    assert math.isnan(reader.joint([near] * 3, (0.0, math.nan, 2.0)))


def apart() -> Conversation:
    """One in which windows that are told are a hundred times less unusual than others."""
    made = Conversation(16, APART)
    values = np.random.default_rng(0).normal(size=500)
    near, far = Scale.of(values), Scale.of(100 * values)
    made.calibrate([[near, near, near, near], [near, near, near, near], [near, near, far, near]], 1.5, -4.0)
    return made


def test_what_is_told_is_measured_by_itself_where_the_reader_has_cells_for_it() -> None:
    reader, notes = apart(), np.zeros((30, 2))
    plain = reader.score(notes, TOLD)
    notes[12:20, 1] = 5.0
    assert reader.score(notes, TOLD) == pytest.approx(plain, abs=0.02)
    assert reader.score(notes, replace(TOLD, told=())) > 0.9
    notes[22:30, 1] = 5.0
    assert reader.score(notes, TOLD) > 0.9
    found = reader.token_scores(notes, TOLD)
    assert found.counted == [(1, 9), (21, 29), (22, 30)]  # none of what is told
    assert found.scores[15] < 0.5 < found.scores[25]


def test_a_reader_without_such_cells_reads_what_is_told_as_what_is_said() -> None:
    reader, notes = conversation(), np.random.default_rng(3).normal(size=(30, 2))
    said = replace(TOLD, told=())
    assert reader.score(notes, TOLD) == reader.score(notes, said)
    assert reader.token_scores(notes, TOLD) == reader.token_scores(notes, said)


def test_a_prompt_in_which_all_is_told_has_a_score() -> None:
    reader, notes = apart(), np.zeros((9, 2))
    layout = Layout(9, [8], [(0, 9)], has_image=True, told=[(0, 9)])  # no told cell has pictures: any told one counts
    assert 0.0 <= reader.score(notes, layout) <= 1.0
    notes[3] = math.nan
    assert math.isnan(reader.score(notes, layout))


def test_a_bundle_that_measures_them_apart_has_a_format_of_its_own(tmp_path: Path) -> None:
    cells = [CellSpec(**cell._asdict()) for cell in APART]
    spec = ConversationSpec(window=8, cells=cells)
    reader = apart()
    save_bundle(tmp_path, whole(format_version=5, conversation=spec.model_dump()), reader, RefusalHead(16), {})
    guard = load_guard(tmp_path, INFO)
    assert guard.manifest.readers == "turn ends, windows of 8 tokens, tools and system messages by themselves"
    notes = np.random.default_rng(4).normal(size=(30, 2))
    assert guard.score(torch.from_numpy(notes), TOLD) == reader.score(notes, TOLD)
    assert "told" not in json.dumps(whole().model_dump(mode="json")["conversation"])


def whole(**changes: object) -> Manifest:
    """The manifest of a bundle that reads conversations."""
    cells = [CellSpec(**cell._asdict()) for cell in CELLS]
    own = {
        "format_version": 2,
        "probe_position": "conversation",
        "conversation": ConversationSpec(window=8, cells=cells).model_dump(),
        "prober_hidden": 0,
    }
    return manifest(**{**own, **changes})


def test_a_bundle_keeps_its_reader(tmp_path: Path) -> None:
    reader = conversation(48)
    save_bundle(tmp_path, whole(probe_layers=[1, 2, 3]), reader, RefusalHead(16), {})
    guard = load_guard(tmp_path, INFO)
    assert (guard.layers, guard.width) == ([1, 2, 3], 2)
    assert guard.manifest.readers == "turn ends, windows of 8 tokens"
    states, layout = torch.randn(25, 3, 16), layout_of(25, 7)
    notes = guard.read(states)
    assert torch.equal(notes, reader.read(states))
    assert guard.score(notes, layout) == reader.score(notes.double().numpy(), layout)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format_version": 1}, "format_version 1 at conversation with conversation"),
        ({"conversation": None}, "format_version 2 at conversation without conversation"),
        ({"conversation": {"window": 8, "cells": [{**ANY_LENGTH, "told": True}]}}, "all cells are of told prompts"),
        ({"conversation": {"window": 8, "cells": [ANY_LENGTH, {**ANY_LENGTH, "told": True}]}}, "format_version 2"),
        ({"probe_position": "last_prompt_token"}, "format_version 2 at last_prompt_token with conversation"),
        ({"conversation": {"window": 8, "cells": []}}, "at least 1 item"),
        (
            {"conversation": {"window": 0, "cells": [{"has_image": False, "most_tokens": None, "samples": 1}]}},
            "greater",
        ),
        (
            {"conversation": {"window": 8, "cells": [{"has_image": True, "most_tokens": 9, "samples": 1}]}},
            "with images",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    save_bundle(tmp_path, whole(probe_layers=[1, 2, 3]), conversation(48), RefusalHead(16), {})
    edit(tmp_path, lambda data: data.update(changes))
    with pytest.raises(BundleError, match=told):
        load_guard(tmp_path, INFO)
