"""Plots for people of what the benchmarks found, as SVG.

`python -m benchmarks.plots goodput RUN.json` draws what `--only open-loop --out RUN.json` wrote, `python -m
benchmarks.plots scheduling` the simulation of the scheduler, with costs that were measured once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from benchmarks.load import PROMPT_SECONDS, STALL_SECONDS
from benchmarks.scheduling import Costs, figures, loads, simulate
from server.settings.schema import Settings
from steering.fitting.page import ACCENT, GREY, SAFE, TOXIC, panel

COLOURS = (ACCENT, TOXIC, GREY, SAFE, "#8e44ad")
SIMULATED_GAPS = (0.001, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # seconds
DEFAULT_GAP_MS = Settings().max_gap_ms

Point = Mapping[str, Any]  # of one server at one share, as the scenario wrote it

app = typer.Typer(add_completion=False)


@app.callback()
def plots() -> None:
    """Draw what the benchmarks found."""


@app.command()
def goodput(
    run: Annotated[Path, typer.Argument(help="What `--only open-loop --out` wrote.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/images/goodput.svg"),
) -> None:
    """Draw goodput and first tokens against the arrivals."""
    scenarios = json.loads(run.read_text())["scenarios"]
    points = [point for scenario in scenarios for point in scenario.get("goodput", ())]
    if not points:
        raise typer.BadParameter(f"{run} holds no open-loop", param_hint="RUN")
    save(goodput_figure(points), out)


def goodput_figure(points: Sequence[Point]) -> Figure:
    """Requests a second that were answered well against those that came, and when their first tokens came."""
    figure, (left, right) = panel(9.0, 3.6, columns=2)
    servers = list(dict.fromkeys(point["server"] for point in points))
    for server, colour in zip(servers, COLOURS, strict=False):
        own = sorted((point for point in points if point["server"] == server), key=lambda point: point["share"])
        shares = [point["share"] for point in own]
        good = [sum(point["good"]) / len(point["good"]) for point in own]
        left.plot(shares, good, "o-", color=colour, label=server)
        for point in own:
            left.plot([point["share"]] * len(point["good"]), point["good"], "_", color=colour, alpha=0.6)
        first = [(point["share"], point["first_token_p50"]) for point in own if point["first_token_p50"] is not None]
        right.plot(*zip(*first, strict=True), "o-", color=colour, label=server) if first else None
    arrived = sorted({(point["share"], point["arrived"]) for point in points})
    left.plot(*zip(*arrived, strict=True), ":", color=GREY, label="all that came")
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    right.axhline(PROMPT_SECONDS, color=GREY, linestyle=":")
    _axis(left, f"good requests/s: first token in {PROMPT_SECONDS:g} s, gaps under {STALL_SECONDS * 1e3:g} ms")
    _axis(right, "first token p50, s")
    left.legend(frameon=False)
    return figure


@app.command()
def scheduling(
    step: Annotated[float, typer.Option(help="Milliseconds of a step itself.")] = 21.9,
    row: Annotated[float, typer.Option(help="Milliseconds of a decoding row.")] = 1.7,
    token: Annotated[float, typer.Option(help="Milliseconds of a prompt's token.")] = 0.27,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/images/scheduling.svg"),
) -> None:
    """Draw what the bound on gaps brings and costs in the simulation."""
    save(scheduling_figure(Costs(step / 1000, row / 1000, token / 1000)), out)


def scheduling_figure(costs: Costs) -> Figure:
    """Tokens a second, first tokens and gaps of each simulated load, against `max_gap_ms`."""
    figure, (speed, first, gaps) = panel(11.0, 3.6, columns=3)
    for name, colour in zip(loads(costs), COLOURS, strict=False):
        found = [figures(*simulate(loads(costs)[name], costs, gap)) for gap in SIMULATED_GAPS]
        milliseconds = [1e3 * gap for gap in SIMULATED_GAPS]
        for axes, values in (
            (speed, [each.tokens_per_second for each in found]),
            (first, [each.first_p50 for each in found]),
            (gaps, [each.gap_p99 for each in found]),
        ):
            axes.plot(milliseconds, values, "o-", color=colour, label=name, markersize=3)
    for axes, title in ((speed, "tokens/s"), (first, "first token p50, s"), (gaps, "between tokens p99, s")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("max_gap_ms")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(DEFAULT_GAP_MS, color=GREY, linestyle=":")
    for axes, ticks in ((first, (0.1, 0.2, 0.5, 1, 2, 5, 10)), (gaps, (0.1, 0.2, 0.3, 0.5, 1))):
        axes.set_yscale("log")
        axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    speed.set_ylim(bottom=0)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _axis(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("arrivals, share of our capacity")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def save(figure: Figure, out: Path) -> None:
    """Write a picture that is the same for the same figures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "autosteer", "svg.fonttype": "path"}):
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    app()
