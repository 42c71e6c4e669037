"""Draws a dashboard's panels from what Prometheus answers to their queries."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.dashboards.panels import Dashboard, Panel
from benchmarks.dashboards.queries import Prometheus, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
POINTS = 120


def draw(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, file: Path) -> None:
    """Write a picture of all panels over a time, in seconds since 1970."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(dashboard.panels) / COLUMNS)
    figure = Figure(figsize=(15, 2.9 * rows + 0.6), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(dashboard.title, fontsize=14)
    cells = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for panel, axes in zip(dashboard.panels, cells, strict=False):
        draw_panel(panel, axes, prometheus, start, end)
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
    drawing = {"timeseries": _lines, "stat": _number, "heatmap": _heatmap}[panel.kind]
    drawing(panel, axes, lines, start)


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
    axes.set_ylim(bottom=0)
    if panel.unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("seconds" if panel.unit != "s" else "seconds; y in seconds", fontsize=7)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, loc="best", framealpha=0.6)


def _number(panel: Panel, axes: Axes, lines: list[tuple[str, Series]], start: float) -> None:  # noqa: ARG001
    axes.set_axis_off()
    for place, (name, line) in enumerate(lines):
        last = next(value for value in reversed(line.values) if math.isfinite(value))
        text = f"{last:.1%}" if panel.unit == "percentunit" else f"{last:g}"
        y = 1 - (place + 0.5) / len(lines)
        axes.text(0.5, y, f"{text}  {name}", ha="center", va="center", fontsize=20, transform=axes.transAxes)


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
