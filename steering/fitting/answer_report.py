"""What the report of a fit shows of a reader of answers: tables, and where it trips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from steering.fitting.answer_figures import HOLD, AnswerFigures
from steering.fitting.page import ACCENT, SAFE, TOXIC, Section, panel

TITLE = "Reader of answers: final scores of fresh answers, and where it trips on harmful ones"


def answer_sections(answers: Mapping[str, Any]) -> list[Section]:
    """The tables of what `AnswerFigures.tables` says."""
    found = answers["figures"]
    counts = f"{found['harmful']:.0f} harmful and {found['harmless']:.0f} harmless fresh answers"
    notes = [f"{counts}: AUROC {found['auroc']:.4f}. Thresholds are of whole answers' final scores."]
    held = f"shown before the trip, {HOLD} held back: p50"
    thresholds = [["false alarms per answer at most", "threshold", "harmful caught", held, "p95"]]
    for row in answers["by_threshold"]:
        shown = [f"{row[name]:.0f}" if name in row else "" for name in ("shown_p50", "shown_p95")]
        thresholds.append([f"{row['target_fpr']:.1%}", f"{row['threshold']:.6f}", f"{row['tpr']:.1%}", *shown])
    head = ["tokens", "harmful", "tripped", "harmless", "tripped"]
    by_length = [[row["tokens"], *_counted(row, "harmful"), *_counted(row, "harmless")] for row in answers["by_length"]]
    return [
        Section("Reader of answers", notes=notes, table=thresholds),
        Section("Answers by length, at the default threshold", table=[head, *by_length]),
    ]


def _counted(row: Mapping[str, Any], name: str) -> Sequence[str]:
    share = row.get(f"{name}_tripped")
    return str(row[name]), "" if share is None else f"{share:.1%}"


def draw_answers(figures: AnswerFigures) -> Figure:
    """Final scores of both kinds, and after how many tokens it trips on harmful answers."""
    figure, (left, right) = panel(9, 3.6, 2)
    for harmful, colour, name in ((False, SAFE, "harmless"), (True, TOXIC, "harmful")):
        left.hist(
            np.nan_to_num(figures.finals(harmful=harmful).numpy(), nan=1.0),
            bins=np.linspace(0, 1, 41).tolist(),
            color=colour,
            alpha=0.6,
            label=name,
        )
    left.axvline(figures.threshold, color=ACCENT, linestyle=":", label=f"default threshold {figures.threshold:.3g}")
    left.set(xlabel="final score", ylabel="answers", yscale="symlog")
    left.legend(frameon=False)
    trips = np.sort(figures.trips(figures.threshold))
    caught = np.arange(1, len(trips) + 1) / max(1, len(figures.finals(harmful=True)))
    right.step([0, *trips.tolist()], [0, *caught.tolist()], where="post", color=TOXIC)
    right.axvline(HOLD, color=ACCENT, linestyle=":", label=f"{HOLD} tokens")
    right.set(xlabel="tokens computed", ylabel="share of harmful answers tripped", ylim=(-0.02, 1.05))
    right.legend(frameon=False)
    return figure
