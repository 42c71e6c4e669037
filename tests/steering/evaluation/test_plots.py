"""Plots of a run stay legible."""

from __future__ import annotations

from itertools import pairwise

import pytest

from steering.evaluation.plots import bars


@pytest.mark.parametrize("count", [3, 5, 12])
def test_names_under_bars_do_not_overprint(count: int) -> None:
    names = [f"a-set-with-a-long-name-{n}" for n in range(count)]
    cells = [{"set": name, "system": "original", "rate": 0.5, "low": 0.4, "high": 0.6} for name in names]
    figure = bars(cells, "title")
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = axes.get_xticklabels()
    rotated = {label.get_rotation() for label in labels}
    boxes = [label.get_window_extent() for label in labels]
    assert rotated == {20.0} or not any(a.overlaps(b) for a, b in pairwise(boxes))
