"""From what is read of fresh prompts to the scales of a conversation's reader, and its scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from models.layout import Layout
from steering.readers import Cell, Conversation
from steering.scale import Scale, most_unusual

CELL = 250  # harmless prompts that a cell has at least, if there are as many
STRETCH = 1.5  # how much longer the longest prompt of a cell is than its shortest, at least

Array = NDArray[np.float64]


def make_cells(tokens: NDArray[np.int64], has_image: NDArray[np.bool_]) -> list[Cell]:
    """Cells by length, with images and without; `tokens` and `has_image` `[n]` of harmless prompts.

    Most prompts are short, and what is read rises with the length: cells of equally many prompts would measure all long
    ones against the shortest of them. So each cell spans like ratios of lengths.
    """
    found = []
    for kind in sorted({*has_image.tolist()}):
        lengths = np.sort(tokens[has_image == kind])
        begin = 0
        for end in range(1, len(lengths)):
            full = end - begin >= CELL and len(lengths) - end >= CELL
            if full and lengths[end] > max(lengths[end - 1], STRETCH * lengths[begin]):
                found.append(Cell(kind, int(lengths[end - 1]), end - begin))
                begin = end
        found.append(Cell(kind, None, len(lengths) - begin))
    return found


def calibrate(reader: Conversation, raw: Array, layouts: Sequence[Layout], labels: Tensor) -> None:
    """Set a reader's scales by harmless prompts, and its score by both kinds, as likely as each other.

    `raw` `[N, 2]`: what it reads of each prompt. Labels `[N]`, 1 harmful.
    """
    cells = np.array([reader.cell(layout) for layout in layouts])
    harmless = (labels == 0).numpy()
    scales = []
    joint = np.zeros(len(raw))
    for cell in range(len(reader.cells)):
        inside = raw[harmless & (cells == cell)]
        own = [Scale.of(inside[:, place]) for place in range(reader.width)]
        at = np.flatnonzero(cells == cell)
        joint[at] = [most_unusual(own, raw[row]) for row in at]
        scales.append([*own, Scale.of(joint[harmless & (cells == cell)])])
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
    """The scores `[N]` of prompts by what was read of them."""
    return torch.tensor([reader.score_of(each, layout) for each, layout in zip(raw.tolist(), layouts, strict=True)])
