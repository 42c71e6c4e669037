"""Cells of calibration: of like lengths, none too small, whatever most prompts are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from models.layout import Layout
from steering.fitting.calibrate import CELL, STRETCH, calibrate, make_cells, scores
from steering.readers import Conversation
from tests.layouts import layout_of


def layouts(tokens: Sequence[int], pictures: int = 0, told: int = 0, answers: int = 0) -> list[Layout]:
    """The first have pictures, are told, or have an answer in them."""
    return [
        replace(layout_of(count, *[0] * (n < answers), has_image=n < pictures), told=[(0, count)] * (n < told))
        for n, count in enumerate(tokens)
    ]


def cells(tokens: Sequence[int], pictures: int = 0) -> list[tuple[bool, int | None, int]]:
    return [(cell.has_image, cell.most_tokens, cell.samples) for cell in make_cells(layouts(tokens, pictures))]


def test_long_prompts_are_not_measured_against_short_ones() -> None:
    most, few = [40 + n % 11 for n in range(2000)], [100 + n for n in range(CELL)]
    found = cells(most + few)
    assert found == [(False, 50, 2000), (False, None, CELL)]
    # Few of them have no cell of their own, and are promised no more than the mean over it.
    assert cells(most + few[1:]) == [(False, None, 2000 + CELL - 1)]


@pytest.mark.parametrize("seed", range(3))
def test_cells_span_like_ratios_and_none_is_too_small(seed: int) -> None:
    tokens = np.random.default_rng(seed).lognormal(5, 1, 5000).astype(int) + 10
    found = cells(tokens.tolist(), pictures=300)
    for kind, count in ((True, 300), (False, 4700)):
        of_kind = [cell for cell in found if cell[0] is kind]
        assert sum(samples for *_, samples in of_kind) == count
        assert of_kind[-1][1] is None
        assert min(samples for *_, samples in of_kind) >= CELL
        lengths = np.sort(tokens[:300] if kind else tokens[300:])
        shortest = lengths[np.cumsum([0, *(samples for *_, samples in of_kind[:-1])])]
        assert all(later > STRETCH * first for first, later in pairwise(shortest))
        assert len(of_kind) >= (1 if kind else 4)


def test_prompts_of_one_length_are_one_cell() -> None:
    assert cells([7] * 3 * CELL) == [(False, None, 3 * CELL)]
    assert cells([7, 8, 9]) == [(False, None, 3)]


def test_told_prompts_have_cells_of_their_own_where_there_are_enough_of_them() -> None:
    for told, found in ((CELL, [(False, 3 * CELL), (True, CELL)]), (CELL - 1, [(False, 4 * CELL)])):
        made = make_cells(layouts([7] * 4 * CELL, told=told))
        assert [(cell.told, cell.samples) for cell in made] == found
        assert all(cell.most_tokens is None for cell in made)


def test_prompts_with_an_answer_in_them_have_cells_of_their_own_where_there_are_enough() -> None:
    tokens = [20 + n % 7 for n in range(3 * CELL)]
    found = make_cells(layouts(tokens, answers=CELL))
    assert [(cell.answered, cell.samples) for cell in found] == [(False, 2 * CELL), (True, CELL)]
    (few,) = make_cells(layouts(tokens, answers=CELL - 1))
    assert few.answered is None


def test_each_number_of_a_told_prompt_is_put_on_the_scale_of_told_ones() -> None:
    chance, about = np.random.default_rng(0), layouts([9] * 4 * CELL, told=2 * CELL)
    told = torch.arange(len(about)) < 2 * CELL
    raw = chance.normal(size=(len(about), 3)) * np.where(told.numpy()[:, None], [1.0, 1.0, 50.0], [1.0, 1.0, 0.0])
    reader = Conversation(4, make_cells(about))
    calibrate(reader, raw, about, (torch.arange(len(about)) % 5 == 0).long())
    found = scores(reader, raw, about)
    above = found > found.median()
    assert [float(above[of].double().mean()) for of in (told, ~told)] == pytest.approx([0.5, 0.5], abs=0.05)
    assert reader.score_of((0.0, 0.0, 40.0), about[0]) < reader.score_of((0.0, 5.0), about[-1])
