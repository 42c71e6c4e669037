"""The plots of a run: rates with intervals, scores, ROC, sweeps, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from steering.evaluation.columns import BY_KEY
from steering.fitting.page import ACCENT, GREY, SAFE, TOXIC, panel

COLOURS = (TOXIC, "#ca6f1e", SAFE, ACCENT, "#8e44ad", GREY)

LETTER = 0.11  # inches, with room beside

Cell = Mapping[str, Any]
Drawing = tuple[str, Callable[[], Figure]]


def drawings(results: Mapping[str, Any], scores: Mapping[str, tuple[list[float], list[float]]]) -> dict[str, Drawing]:
    """What there is to draw, by file name: a title and how."""
    main = next(iter(results["judges"]))
    found: dict[str, Drawing] = {}
    for name, figure, title in (
        ("attacks", "attack success", f"Attack success rate, judged by {main}"),
        ("refusals", "over-refusal", f"Harmless requests refused, judged by {main}"),
        ("accuracy", "accuracy", "Accuracy"),
    ):
        cells = [c for c in results["figures"] if c["figure"] == figure and c["judge"] in (main, BY_KEY)]
        if cells:
            found[name] = (f"{title}: 95 % intervals", partial(bars, cells, title))
    if scores:
        found["scores"] = ("Scores by set", lambda: _scores(results["scores"], results["threshold"]))
        if both := {name: pair for name, pair in scores.items() if all(pair)}:
            found["roc"] = ("ROC", partial(_roc, both, results["detectors"]))
    if flagged := _flagged(results["surroundings"]):
        title = "Flagged in each surrounding, at the policy's threshold"
        found["surroundings"] = (f"{title}: 95 % intervals", partial(bars, flagged, title))
    if results["sweeps"]["eps"]:
        found["eps"] = ("Steering strength", lambda: _eps(results["sweeps"]["eps"]))
    if results["sweeps"]["threshold"]:
        found["threshold"] = ("Threshold", lambda: _threshold(results["sweeps"]["threshold"], results["threshold"]))
    if results["cost"]:
        found["latency"] = ("Latency", lambda: _latency(results["cost"]))
    return found


def _flagged(parts: Sequence[Cell]) -> list[Cell]:
    """Harmful and harmless rows that are flagged, by surrounding, of the first detector."""
    cells = [{**cell, "set": part["surrounding"], "system": cell["kind"]} for part in parts for cell in part["flagged"]]
    return [cell for cell in cells if cell["detector"] == cells[0]["detector"]]


def bars(cells: Sequence[Cell], title: str) -> Figure:
    """Shares with their intervals, by set, a colour for each system."""
    sets = list(dict.fromkeys(cell["set"] for cell in cells))
    systems = list(dict.fromkeys(cell["system"] for cell in cells))
    inches = max(7.5, 0.55 * len(sets) * len(systems))
    figure, (axes,) = panel(inches, 3.6)
    turned = max(map(len, sets)) * len(sets) * LETTER > inches  # names side by side would overprint
    width = 0.8 / len(systems)
    for place, system in enumerate(systems):
        found = {cell["set"]: cell for cell in cells if cell["system"] == system and cell["rate"] is not None}
        x = [at + (place - (len(systems) - 1) / 2) * width for at, name in enumerate(sets) if name in found]
        shown = [found[name] for name in sets if name in found]
        y = [100 * cell["rate"] for cell in shown]
        below = [max(0.0, 100 * (cell["rate"] - cell["low"])) for cell in shown]
        above = [max(0.0, 100 * (cell["high"] - cell["rate"])) for cell in shown]
        colour = COLOURS[place % len(COLOURS)]
        axes.bar(x, y, width * 0.92, color=colour, label=system)
        axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axes.set(ylabel="%", ylim=(0, 106), title=title)
    axes.set_xticks(range(len(sets)), sets, rotation=20 if turned else 0, ha="right" if turned else "center")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _scores(scores: Mapping[str, Mapping[str, Any]], threshold: float | None) -> Figure:
    names = list(scores)
    figure, (axes,) = panel(7.5, 0.45 * len(names) + 1.2)
    bins = np.linspace(0, 1, 61)
    for place, name in enumerate(reversed(names)):
        counts, _ = np.histogram(np.clip(scores[name]["values"], 0, 1), bins)
        colour = TOXIC if scores[name]["kind"] == "harmful" else SAFE
        # Root of the share: what is rare is what matters here, and has to be seen.
        height = 0.85 * np.sqrt(counts / max(1, counts.sum()))
        axes.bar(bins[:-1], height, np.diff(bins), bottom=place, align="edge", color=colour)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle=":", label=f"threshold {threshold:.3g}")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(xlabel="score (height: root of the share; red: harmful sets)", xlim=(0, 1))
    return figure


def _roc(scores: Mapping[str, tuple[list[float], list[float]]], detectors: Sequence[Mapping[str, Any]]) -> Figure:
    figure, (axes,) = panel(5.5, 4)
    for place, (name, (toxic, safe)) in enumerate(scores.items()):
        fpr, tpr, _ = roc_curve([1] * len(toxic) + [0] * len(safe), [*toxic, *safe])
        floor = 0.5 / len(safe)  # a rate of 0 has no place on the logarithmic axis
        colour = (SAFE, ACCENT, GREY)[place % 3]
        detector = next(each for each in detectors if each["detector"] == name)
        axes.step(
            np.maximum(fpr, floor), tpr, where="post", color=colour, label=f"{name}: AUROC {detector['auroc']:.4f}"
        )
        at = max(detector["false_alarms"]["rate"], floor), detector["caught"]["rate"]
        axes.plot(*at, "o", color=TOXIC, label="at the policy's threshold")
    axes.set(xscale="log", xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.02, 1.04))
    axes.legend(frameon=False)
    return figure


def _eps(points: Sequence[Mapping[str, float]]) -> Figure:
    both = points[0]["accuracy"] is not None and points[0]["attack success"] is not None
    figure, (left, *rest) = panel(9 if both else 6, 3.6, 2 if both else 1)
    eps = [point["eps"] for point in points]
    for name, colour in (("attack success", TOXIC), ("over-refusal", SAFE), ("accuracy", ACCENT)):
        if points[0][name] is not None:
            left.plot(eps, [100 * point[name] for point in points], color=colour, marker="o", label=name)
    left.set(xlabel="eps", ylabel="%", ylim=(-3, 106))
    left.legend(frameon=False)
    for right in rest:
        places: dict[tuple[float, float], list[str]] = {}  # strengths that do the same share a label
        for point in points:
            place = round(100 * point["accuracy"], 1), round(100 * point["attack success"], 1)
            places.setdefault(place, []).append(f"{point['eps']:g}")
        right.plot([x for x, _ in places], [y for _, y in places], color=GREY, marker="o")
        for place, labels in places.items():
            right.annotate(", ".join(labels), place, textcoords="offset points", xytext=(-6, 5), ha="right", fontsize=8)
        right.set(xlabel="accuracy, %", ylabel="attack success, % (eps beside)", xlim=(-3, 106), ylim=(-3, 106))
    return figure


def _threshold(points: Sequence[Mapping[str, float]], chosen: float | None) -> Figure:
    figure, (axes,) = panel()
    at = [point["threshold"] for point in points]
    for name, colour in (("attack success", TOXIC), ("over-refusal", SAFE), ("accuracy", ACCENT)):
        if points[0][name] is not None:
            axes.plot(at, [100 * point[name] for point in points], color=colour, marker=".", label=name)
    if chosen is not None:
        axes.axvline(chosen, color=GREY, linestyle=":", label="the policy's")
    axes.set(xlabel="threshold (logit scale)", ylabel="%", ylim=(-3, 106), xscale="logit")
    axes.legend(frameon=False)
    return figure


def _latency(costs: Sequence[Mapping[str, Any]]) -> Figure:
    figure, both = panel(9, 0.45 * len(costs) + 1.4, 2)
    names = [cost["system"] for cost in costs]
    for axes, (key, title) in zip(
        both, (("first_token", "first token"), ("between_tokens", "between tokens")), strict=True
    ):
        values = [1000 * (cost[key] or 0.0) for cost in costs]
        axes.barh(range(len(costs)), values, color=[COLOURS[n % len(COLOURS)] for n in range(len(costs))])
        axes.set_yticks(range(len(costs)), names)
        axes.invert_yaxis()
        axes.set(xlabel="ms, median", title=title)
    return figure
