"""The report of a fit: `report.html` (self-contained), its PNGs, `report.json`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve
from torch import Tensor

from steering.files import write_whole
from steering.fitting.answer_report import TITLE, answer_sections, draw_answers
from steering.fitting.category_report import category_sections
from steering.fitting.fit import Fitted
from steering.fitting.page import ACCENT, GREY, SAFE, TOXIC, Page, Section, panel, png
from steering.fitting.problems import Problem
from steering.fitting.sas import unit_differences
from steering.fitting.stages import Chunks
from steering.manifest import Manifest

HEAT_PAIRS = 80
LABELS = 14  # lines of text beside a heat map
LEAKS_SHOWN = 30


def write_report(fitted: Fitted, leaks: Sequence[Problem], folder: Path) -> Path:
    """Write the report; returns its page."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, (title, draw) in _drawings(fitted).items():
        data = png(draw())
        write_whole(folder / f"{name}.png", data)
        pictures.append((title, data))
    report = {**fitted.report, "leaks": [str(leak) for leak in leaks]}
    write_whole(folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    page = folder / "report.html"
    write_whole(page, _page(report, fitted.guard.manifest, pictures).encode())
    return page


# the drawings ------------------------------------------------------------------------------------------------------


def _drawings(fitted: Fitted) -> dict[str, tuple[str, Callable[[], Figure]]]:
    """Name, title and drawing of each figure of a report."""
    manifest, dataset = fitted.guard.manifest, fitted.dataset
    scores = fitted.scores
    fresh = dataset.places("calibration")
    drawings: dict[str, tuple[str, Callable[[], Figure]]] = {
        "layers": ("SAS with its 95 % bootstrap interval, and how a prober separates", lambda: _layers(manifest)),
        "cosines": (
            "Cosines between the differences of twins, by category: one direction is one colour",
            lambda: _cosines(fitted),
        ),
        "scores": ("Scores of fresh prompts", lambda: _scores(scores[fresh], dataset.labels[fresh], manifest)),
        "roc": (
            "ROC on fresh prompts, thresholds marked",
            lambda: _roc(scores[fresh], dataset.labels[fresh], manifest),
        ),
        "reliability": (
            "Reliability on fresh prompts: is a score of 0.8 toxic in 8 of 10 cases?",
            lambda: _reliability(scores[fresh], dataset.labels[fresh]),
        ),
        "losses": ("Held-out loss per epoch", lambda: _losses(fitted.report["losses"])),
        "eps": ("What is said at each steering strength", lambda: _sweep(fitted.report["sweep"], manifest.eps)),
    }
    if fitted.report["surroundings"]:
        drawings["surroundings"] = (
            "What is flagged in each surrounding, fresh prompts; hollow: by the last token's prober alone",
            lambda: _surroundings(fitted.report["surroundings"]),
        )
    if (answers := fitted.answers) is not None:
        drawings["answers"] = TITLE, lambda: draw_answers(answers)
    return drawings


def _layers(manifest: Manifest) -> Figure:
    figure, (left, right) = panel(9, 3.6, 2)
    rows = manifest.layers
    places = [row.layer for row in rows]
    sas = np.array([row.sas for row in rows])
    low = np.array([row.sas if row.sas_low is None else row.sas_low for row in rows])
    high = np.array([row.sas if row.sas_high is None else row.sas_high for row in rows])
    left.errorbar(
        places, sas, yerr=[np.maximum(sas - low, 0), np.maximum(high - sas, 0)], color=SAFE, marker="o", capsize=3
    )
    left.set(xlabel="layer", ylabel="SAS", title="Safety Awareness Score")
    right.plot(places, [row.auroc for row in rows], color=TOXIC, marker="o", label="AUROC")
    right.plot(places, [row.accuracy or 0.0 for row in rows], color=GREY, marker="s", label="balanced accuracy")
    right.set(xlabel="layer", ylim=(0.45, 1.02), title="Prober, validation part")
    for axes in (left, right):
        axes.axvline(manifest.layer, color=ACCENT, linestyle=":", label=f"guarded layer {manifest.layer}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return figure


def _cosines(fitted: Fitted) -> Figure:
    """Heat maps as in the paper's appendix, for the first, the middle and the guarded layer."""
    manifest, dataset = fitted.guard.manifest, fitted.dataset
    layers = [row.layer for row in manifest.layers]
    shown = sorted({layers[min(1, len(layers) - 1)], layers[len(layers) // 2], manifest.layer})
    toxic, safe = dataset.twins("train")
    order = sorted(range(len(toxic)), key=lambda at: dataset.items[dataset.owners[toxic[at]]].category)
    chosen = [order[int(at)] for at in np.linspace(0, len(order) - 1, min(HEAT_PAIRS, len(order)))]
    categories = [dataset.items[dataset.owners[toxic[at]]].category for at in chosen]
    edges = [at for at in range(1, len(categories)) if categories[at] != categories[at - 1]]
    figure, all_axes = panel(3.6 * len(shown) + 0.8, 3.8, len(shown))
    chunks = Chunks(fitted.folders["states"])
    image = None
    for axes, layer in zip(all_axes, shown, strict=True):
        x = chunks.column(layers.index(layer))
        units = unit_differences(x[[toxic[at] for at in chosen]], x[[safe[at] for at in chosen]])
        image = axes.imshow((units @ units.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        sas = next(row.sas for row in manifest.layers if row.layer == layer)
        axes.set(title=f"layer {layer}: SAS {sas:.3f}", xticks=[], yticks=[])
        for edge in edges:
            axes.axhline(edge - 0.5, color="black", linewidth=0.4)
            axes.axvline(edge - 0.5, color="black", linewidth=0.4)
        if layer == shown[0]:
            blocks = list(itertools.pairwise([0, *edges, len(categories)]))
            named = legible(blocks, len(categories) / LABELS)
            axes.set_yticks([(a + b - 1) / 2 for a, b in named], [categories[a] or "pairs" for a, _ in named])
    assert image is not None
    figure.colorbar(image, ax=all_axes, shrink=0.8)
    return figure


def legible(blocks: Sequence[tuple[int, int]], gap: float) -> list[tuple[int, int]]:
    """The blocks (begin, end) that are labelled: the largest first, as long as their middles are `gap` apart."""
    chosen: list[tuple[int, int]] = []
    for block in sorted(blocks, key=lambda each: each[0] - each[1]):
        if all(abs(sum(block) - sum(other)) / 2 >= gap for other in chosen):
            chosen.append(block)
    return sorted(chosen)


def _scores(scores: Tensor, labels: Tensor, manifest: Manifest) -> Figure:
    figure, (axes,) = panel()
    bins = np.linspace(0, 1, 41).tolist()
    for label, colour, name in ((0, SAFE, "safe"), (1, TOXIC, "toxic")):
        axes.hist(scores[labels == label].numpy(), bins=bins, color=colour, alpha=0.6, label=name)
    for place, known in enumerate(manifest.thresholds):
        at = known.threshold
        axes.axvline(at, color="black", linewidth=0.8, linestyle=(0, (1 + 2 * place, 2)))
    names = ", ".join(f"{known.target_fpr:.1%}" for known in manifest.thresholds)
    axes.set(yscale="log", xlabel="score", ylabel="prompts", title=f"lines: thresholds for FPR {names}")
    axes.legend(frameon=False)
    return figure


def _roc(scores: Tensor, labels: Tensor, manifest: Manifest) -> Figure:
    figure, (axes,) = panel(5.5, 4)
    fpr, tpr, _ = roc_curve(labels.numpy(), scores.numpy())
    floor = 0.5 / max(1, int((labels == 0).sum()))  # a rate of 0 has no place on the logarithmic axis
    axes.step(np.maximum(fpr, floor), tpr, where="post", color=SAFE)
    for known, marker in zip(manifest.thresholds, "os^", strict=False):
        flagged = ~(scores < known.threshold)
        x = max(float(flagged[labels == 0].double().mean()), floor)
        y = float(flagged[labels == 1].double().mean())
        axes.plot(x, y, marker, color=TOXIC, label=f"FPR {known.target_fpr:.1%} promised: TPR {y:.3f}")
    axes.set(xscale="log", xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.02, 1.02))
    axes.legend(frameon=False, loc="lower right")
    return figure


def _reliability(scores: Tensor, labels: Tensor) -> Figure:
    figure, (axes,) = panel(5, 4)
    places = (scores * 10).long().clamp(0, 9)
    bins = [at for at in range(10) if bool((places == at).any())]
    x = [float(scores[places == at].double().mean()) for at in bins]
    y = [float(labels[places == at].double().mean()) for at in bins]
    sizes = [int((places == at).sum()) for at in bins]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.plot(x, y, color=SAFE, marker="o")
    for at, size in enumerate(sizes):
        axes.annotate(str(size), (x[at], y[at]), textcoords="offset points", xytext=(5, -10), fontsize=7)
    axes.set(xlabel="mean score (number of prompts beside)", ylabel="share toxic", xlim=(0, 1), ylim=(-0.02, 1.02))
    return figure


def _losses(losses: Mapping[str, Sequence[float]]) -> Figure:
    figure, both = panel(9, 3.2, 2)
    for axes, (name, values) in zip(both, losses.items(), strict=True):
        axes.plot(range(1, len(values) + 1), values, color=SAFE)
        best = min(range(len(values)), key=values.__getitem__)
        axes.plot(best + 1, values[best], "o", color=ACCENT, label=f"kept: epoch {best + 1}")
        axes.set(title=name, xlabel="epoch", yscale="log")
        axes.legend(frameon=False)
    return figure


def _surroundings(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Shares flagged: filled by the guard, hollow by the prober at the last token."""
    figure, (axes,) = panel(7.5, 0.4 * len(rows) + 1.4)
    for label, colour, name in (("toxic", TOXIC, "harmful"), ("safe", SAFE, "harmless")):
        for suffix, fill in (("_flagged_by_last", "none"), ("_flagged", colour)):
            points = [(row[f"{label}{suffix}"], at) for at, row in enumerate(rows) if f"{label}{suffix}" in row]
            shown = f"{name}, last token" if fill == "none" else name
            if points:
                shares, places = zip(*points, strict=True)
                axes.scatter(shares, places, facecolors=fill, edgecolors=colour, s=45, label=shown)
    axes.set_yticks(range(len(rows)), [row["surrounding"] for row in rows])
    axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5), xlabel="share flagged")
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
    return figure


def _sweep(points: Sequence[Mapping[str, float]], chosen: float) -> Figure:
    figure, (axes,) = panel()
    eps = [point["eps"] for point in points]
    axes.plot(eps, [point["exact"] for point in points], color=SAFE, marker="o", label="exactly a refusal")
    axes.plot(eps, [point["begins"] for point in points], color=GREY, marker="s", label="begins like one")
    axes.axvline(chosen, color=ACCENT, linestyle=":", label=f"chosen: {chosen:g}")
    axes.set(xlabel="eps", ylabel="share of steered answers", ylim=(-0.02, 1.05))
    beside = axes.twinx()
    beside.plot(eps, [point["perplexity"] for point in points], color=TOXIC, marker="^", linewidth=0.8)
    beside.set(yscale="log", ylabel="perplexity, unguarded (red)")
    beside.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return figure


# the page ----------------------------------------------------------------------------------------------------------


def _page(report: Mapping[str, Any], manifest: Manifest, pictures: Sequence[tuple[str, bytes]]) -> str:
    leaks = report["leaks"]
    sections = [
        *category_sections(report["categories"], manifest.categories),
        *(
            [Section("By surrounding, on fresh prompts", table=_surrounding_rows(around))]
            if (around := report["surroundings"])
            else []
        ),
        *(answer_sections(report["answers"]) if "answers" in report else []),
        Section("Thresholds", table=_threshold_rows(manifest)),
        *(Section(title, picture=data) for title, data in pictures),
        *([Section(f"{len(leaks)} leaks between the parts", points=leaks[:LEAKS_SHOWN])] if leaks else []),
        Section("The manifest", code=manifest.model_dump_json(indent=1)),
    ]
    name = manifest.model.name
    lines = [report["headline"], *summary(report, manifest)]
    return Page(f"Guard for {name}", f"A guard for {name}", report["warnings"], lines, sections).render()


def summary(report: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """What to expect of the guard, in plain sentences."""
    figures, choices = manifest.validation, report["choices"]
    agreed = len(set(choices.values())) == 1
    others = ", ".join(f"{name} says {layer}" for name, layer in choices.items())
    best = max(report["sweep"], key=lambda point: point["eps"] == manifest.eps)
    agreement = "All ways to select agree." if agreed else f"The ways to select disagree: {others}."
    model = f"{manifest.model.architecture} with {manifest.model.num_layers} layers"
    several = " and ".join(map(str, manifest.probe_layers))
    reading = f"layers {several} side by side" if several else f"layer {manifest.layer}"
    rate, caught = f"{report['default_fpr']:.1%}", f"{figures['tpr']:.1%}"
    exact, begun = f"{best['exact']:.1%}", f"{best['begins']:.1%}"
    fresh = f"AUROC {figures['auroc']:.4f}, calibration error {figures['calibration_error']:.3f}"
    return [
        f"Fitted on {report['pairs']} training pairs, {manifest.data_size} prompts in all, on {model}.",
        f"It reads {reading} ({report['chosen_by']}). {agreement}",
        f"Fresh prompts (the calibration part): {fresh}.",
        f"The default threshold {manifest.threshold:.4g} keeps the false-positive rate at {rate} or less.",
        f"Expect it to catch {caught} of prompts like the toxic ones here; about others nothing is promised.",
        f"Steered with eps {manifest.eps:g}, {exact} of toxic validation prompts got a refusal, {begun} its start.",
        f"A bag of words alone reaches AUROC {report['words_auroc']:.3f} on the same fresh prompts.",
    ]


def _surrounding_rows(surroundings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["surrounding", "toxic", "flagged", "by last token", "safe", "flagged", "by last token"]]
    for row in surroundings:
        cells = [row["surrounding"]]
        for label in ("toxic", "safe"):
            shares = (row.get(f"{label}_flagged"), row.get(f"{label}_flagged_by_last"))
            cells += [str(row[label]), *("" if share is None else f"{share:.1%}" for share in shares)]
        rows.append(cells)
    return rows


def _threshold_rows(manifest: Manifest) -> list[list[str]]:
    head = ["false-positive rate at most", "threshold", "from safe prompts"]
    return [head, *([f"{t.target_fpr:.1%}", f"{t.threshold:.6f}", str(t.samples)] for t in manifest.thresholds)]
