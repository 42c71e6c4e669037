"""Draws a dashboard's panels from what Prometheus answers to their queries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.dashboards.expressions import ANNOTATIONS
from benchmarks.dashboards.panels import Annotation, Dashboard, Levels, Panel
from benchmarks.dashboards.queries import Prometheus, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
POINTS = 120
UNITS = {"s": "seconds", "reqps": "requests/s", "cps": "records/s", "suffix: tokens/s": "tokens/s"}


def draw(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, file: Path) -> None:
    """Write a picture of all panels over a time, in seconds since 1970."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(dashboard.panels) / COLUMNS)
    figure = Figure(figsize=(15, 2.9 * rows + 0.6), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(dashboard.title, fontsize=14)
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flat
    marks = [(each, prometheus.range(each.expr, start, end, max(1.0, (end - start) / POINTS))) for each in ANNOTATIONS]
    for panel, axes in zip(dashboard.panels, cells, strict=False):
        draw_panel(panel, axes, prometheus, start, end)
        if panel.kind in ("timeseries", "state-timeline"):
            _mark(axes, marks, start, end)
    for axes in list(cells):
        axes.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def draw_panel(panel: Panel, axes: Axes, prometheus: Prometheus, start: float, end: float) -> None:
    """One panel, over what it is called."""
    step = max(1.0, (end - start) / POINTS)
    found = [(query.legend, prometheus.range(query.expr, start, end, step)) for query in panel.queries]
    lines = [(named(legend, line.labels), line) for legend, series in found for line in series]
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.tick_params(labelsize=7)
    if not any(math.isfinite(value) for _, line in lines for value in line.values):
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="grey")
        return
    drawing = {"timeseries": _lines, "stat": _number, "heatmap": _heatmap, "state-timeline": _states}[panel.kind]
    drawing(panel, axes, lines, start)


def _mark(axes: Axes, marks: Sequence[tuple[Annotation, list[Series]]], start: float, end: float) -> None:
    """A line where an annotation has something to tell."""
    for annotation, found in marks:
        for line in found:
            times = {value / 1000 for value in line.values} if annotation.timed else set(line.times)
            for time in times:
                if start <= time <= end:
                    axes.axvline(time - start, color=annotation.colour, linewidth=0.8, alpha=0.6)


def named(legend: str, labels: dict[str, str]) -> str:
    """A legend with its labels filled in, as Grafana does."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


def _lines(panel: Panel, axes: Axes, lines: list[tuple[str, Series]], start: float) -> None:
    from matplotlib.ticker import PercentFormatter

    if panel.stacked:
        times = sorted({time for _, line in lines for time in line.times})
        tables = [dict(zip(line.times, line.values, strict=True)) for _, line in lines]
        heights = [[table.get(time, 0.0) for time in times] for table in tables]
        shown = [index for index, each in enumerate(heights) if any(each)]
        axes.stackplot(
            [time - start for time in times],
            [heights[index] for index in shown],
            labels=[lines[index][0] for index in shown],
            alpha=0.7,
        )
    else:
        for name, line in lines:
            axes.plot([time - start for time in line.times], line.values, label=name, linewidth=1.2)
    if panel.logarithmic:
        axes.set_yscale("log")
    elif panel.maximum is not None:
        axes.set_ylim(0, panel.maximum)
    else:
        axes.set_ylim(bottom=0)
    for value, colour in panel.levels.steps if panel.levels else ():
        if panel.logarithmic or axes.get_ylim()[1] > value / 4:  # as in Grafana, a level far above is out of sight
            axes.axhline(value, color=colour, linewidth=1, linestyle="--")
    if panel.unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(UNITS.get(panel.unit, ""), fontsize=7)
    axes.set_xlabel("seconds", fontsize=7)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, loc="best", framealpha=0.6)


def _number(panel: Panel, axes: Axes, lines: list[tuple[str, Series]], start: float) -> None:  # noqa: ARG001
    axes.set_axis_off()
    for place, (name, line) in enumerate(lines):
        last = next(value for value in reversed(line.values) if math.isfinite(value))
        text = f"{last:.1%}" if panel.unit == "percentunit" else f"{last:g}"
        shown, size = (name, 11) if panel.names else (f"{text}  {name}", 20)
        colour = "black" if panel.levels is None else _colour(panel.levels, last)
        y = 1 - (place + 0.5) / len(lines)
        axes.text(0.5, y, shown, ha="center", va="center", fontsize=size, color=colour, transform=axes.transAxes)


def _colour(levels: Levels, value: float) -> str:
    """Of the highest level that a value reaches."""
    return [levels.base, *(colour for least, colour in levels.steps if value >= least)][-1]


def _states(panel: Panel, axes: Axes, lines: list[tuple[str, Series]], start: float) -> None:
    for place, (_, line) in enumerate(lines):
        lengths = [after - time for time, after in pairwise(line.times)] or [1.0]
        lengths.append(lengths[-1])
        colours = [panel.words[int(value)].colour for value in line.values]
        axes.barh([place] * len(line.times), lengths, 0.8, [time - start for time in line.times], color=colours)
        last = panel.words[int(line.values[-1])].text
        axes.text(line.times[-1] - start, place, last, ha="right", va="center", fontsize=8, color="white")
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_xlabel("seconds", fontsize=7)


def _heatmap(panel: Panel, axes: Axes, lines: list[tuple[str, Series]], start: float) -> None:  # noqa: ARG001
    bounds = sorted((float(name), line) for name, line in lines if math.isfinite(float(name)))
    times = sorted({time for _, line in bounds for time in line.times})
    below = [0.0] * len(times)
    rows = []
    for _, line in bounds:
        counts = dict(zip(line.times, line.values, strict=True))
        upto = [counts.get(time, 0.0) for time in times]
        rows.append([max(0.0, now - before) for now, before in zip(upto, below, strict=True)])
        below = upto
    mesh = axes.pcolormesh(
        [time - start for time in times],
        [bound - 0.025 for bound, _ in bounds],
        rows,
        cmap="Oranges",
        shading="nearest",
    )
    axes.figure.colorbar(mesh, ax=axes).ax.tick_params(labelsize=6)
    axes.set_xlabel("seconds", fontsize=7)
