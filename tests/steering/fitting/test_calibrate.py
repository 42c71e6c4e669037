"""Cells of calibration: of like lengths, none too small, whatever most prompts are like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from steering.fitting.calibrate import CELL, STRETCH, make_cells


def cells(tokens: list[int], pictures: int = 0) -> list[tuple[bool, int | None, int]]:
    has_image = np.arange(len(tokens)) < pictures
    return [(cell.has_image, cell.most_tokens, cell.samples) for cell in make_cells(np.array(tokens), has_image)]


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
