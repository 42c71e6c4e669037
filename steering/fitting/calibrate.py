"""From what is read of fresh prompts to the scales of a conversation's reader, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from models.layout import Layout
from steering.readers import Cell, Conversation
from steering.scale import Scale

CELL = 250  # harmless prompts that a cell has at least, if there are as many
STRETCH = 1.5  # how much longer the longest prompt of a cell is than its shortest, at least

Array = NDArray[np.float64]


def make_cells(layouts: Sequence[Layout]) -> list[Cell]:
    """Cells of harmless prompts with these layouts: with images and without, answered and not, by length.

    Most prompts are short, and what is read rises with the length: cells of equally many prompts would measure all long
    ones against the shortest of them. So each cell spans like ratios of lengths. Prompts in which a tool or a system
    message tells something have cells of their own where there are enough of them, and so have those in which an answer
    stands, since each ends one turn more, and the highest end counts.
    """
    apart = sum(bool(layout.told) for layout in layouts) >= CELL
    found = []
    for told, has_image in product((False, True), repeat=2):
        alike = [each for each in layouts if (apart and bool(each.told), each.has_image) == (told, has_image)]
        if alike and (not told or len(alike) >= CELL):  # few told ones are measured with the others
            found += _by_answers(alike, Cell(has_image, None, 0, told))
    return found


def _by_answers(layouts: Sequence[Layout], kind: Cell) -> list[Cell]:
    apart = [[layout.tokens for layout in layouts if layout.answered == answered] for answered in (False, True)]
    if min(map(len, apart)) < CELL:
        return _by_length([layout.tokens for layout in layouts], kind)
    plain, answered = apart
    return [*_by_length(plain, kind._replace(answered=False)), *_by_length(answered, kind._replace(answered=True))]


def _by_length(tokens: Sequence[int], kind: Cell) -> list[Cell]:
    found, begin, lengths = [], 0, sorted(tokens)
    for end in range(1, len(lengths)):
        full = end - begin >= CELL and len(lengths) - end >= CELL
        if full and lengths[end] > max(lengths[end - 1], STRETCH * lengths[begin]):
            found.append(kind._replace(most_tokens=lengths[end - 1], samples=end - begin))
            begin = end
    return [*found, kind._replace(samples=len(lengths) - begin)]


def calibrate(reader: Conversation, raw: Array, layouts: Sequence[Layout], labels: Tensor) -> None:
    """Set a reader's scales by harmless prompts, and its score by both kinds, as likely as each other.

    `raw` `[N, numbers]`: what it reads of each prompt; the last is that of what is told, where the reader measures it
    by itself, and counts in the cells of told prompts alone. Labels `[N]`, 1 harmful.
    """
    cells = np.array([reader.cell(layout) for layout in layouts])
    harmless = (labels == 0).numpy()
    scales = []
    joint = np.zeros(len(raw))
    for cell in range(len(reader.cells)):
        numbers = raw[:, : reader.width + reader.cells[cell].told]
        own = [Scale.of(of) for of in numbers[harmless & (cells == cell)].T]
        at = np.flatnonzero(cells == cell)
        joint[at] = [reader.joint(own, numbers[row]) for row in at]
        unused = own[-1:] * (raw.shape[1] - len(own))
        scales.append([*own, *unused, Scale.of(joint[harmless & (cells == cell)])])
    unusual = [scales[cell][-1](value) for cell, value in zip(cells, joint, strict=True)]
    reader.calibrate(scales, *rising(unusual, labels.numpy()))


def rising(unusual: Sequence[float], labels: NDArray[np.int64], weights: Array | None = None) -> tuple[float, float]:
    """Slope and shift of the logistic that makes a score of a value `[N]` that rises with label 1.

    Without weights `[N]` both labels are as likely as each other.
    """
    balance = "balanced" if weights is None else None
    model = LogisticRegression(class_weight=balance).fit([[value] for value in unusual], labels, weights)
    # What separates perfectly would promise certainty, and what does not separate must still rise.
    return float(np.clip(model.coef_[0, 0], 0.05, 4.0)), float(model.intercept_[0])


def scores(reader: Conversation, raw: Array, layouts: Sequence[Layout]) -> Tensor:
    """The scores `[N]` of prompts by what was read of them, see `calibrate`."""
    counts = [reader.width + reader.cells[reader.cell(layout)].told for layout in layouts]
    each = zip(raw.tolist(), counts, layouts, strict=True)
    return torch.tensor([reader.score_of(numbers[:count], layout) for numbers, count, layout in each])
