"""A run's results for people: `results.md`, and `report.html` with its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steering.evaluation import answer_reading, category_figures
from steering.evaluation.columns import BY_KEY, Table
from steering.evaluation.judges import PhraseJudge
from steering.evaluation.plots import drawings
from steering.files import write_whole
from steering.fitting.page import Page, Section, png

SHOWN_DROPPED = 20

Results = Mapping[str, Any]
Cell = Mapping[str, Any]


def write_reports(results: Results, scores: Mapping[str, tuple[list[float], list[float]]], folder: Path) -> Path:
    """Write both; `scores` are toxic and safe ones by detector. Returns the page."""
    write_whole(folder / "results.md", markdown(results).encode())
    pictures = []
    for name, (title, draw) in drawings(results, scores).items():
        data = png(draw())
        write_whole(folder / f"{name}.png", data)
        pictures.append((title, data))
    page = folder / "report.html"
    write_whole(page, _page(results, pictures).encode())
    return page


# tables ------------------------------------------------------------------------------------------------------------


def sections(results: Results, *, brief: bool = False) -> list[tuple[str, list[str], Table]]:
    """Every table with its heading and the sentences over it; the first row is the head. `brief`: no categories."""
    names = [system["name"] for system in results["systems"]]
    found: list[tuple[str, list[str], Table]] = []
    by_judge = [*results["judges"], BY_KEY]
    for judge in by_judge:
        cells = [cell for cell in results["figures"] if cell["judge"] == judge]
        if cells:
            kinds = "utility and harmless sets" if judge == BY_KEY else results["judges"][judge]["kind"]
            notes = [f"Judge: {judge} ({kinds}). Shares in %, 95 % intervals, rows in brackets where some are missing."]
            found.append((_heading(judge), notes, _figure_table(cells, names)))
    found += [
        (f"Detection, {each['detector']}", [_detector_note(each)], _detector_table(each, brief=brief))
        for each in results["detectors"]
    ]
    if results["differences"]:
        found.insert(0, ("Against the original", [_AGAINST], _difference_table(results["differences"])))
    if results["answers"]:
        found.append(("Answers read", [answer_reading.NOTE], answer_reading.answer_table(results["answers"])))
    if results["categories"]:
        told = category_figures.category_table(results["categories"])
        found.append(("Categories told apart", [category_figures.NOTE], told))
    found += _surroundings(results["surroundings"], names)
    if results["lengths"]:
        found.append(("False alarms by length", [_LENGTHS], _lengths_table(results["lengths"])))
    for by in dict.fromkeys(cell["by"] for cell in results["groups"]):
        if brief and by == "category":
            continue
        cells = [cell for cell in results["groups"] if cell["by"] == by]
        found.append((f"By {by}", [], _figure_table([{**cell, "set": cell["value"]} for cell in cells], names)))
    for name, points in results["sweeps"].items():
        if points:
            found.append((f"Sweep of {name}", _SWEEP_NOTES[name], _sweep_table(name, points)))
    if results["cost"]:
        found.append(("Cost", [results["cost_note"]], _cost_table(results["cost"])))
    if results["agreement"]:
        found.append(("Agreement of the judges", [], _agreement_table(results["agreement"])))
    found.append(("What the figures rest on", _rows_notes(results), _rows_table(results)))
    return found


def _surroundings(parts: Sequence[Cell], names: Sequence[str]) -> list[tuple[str, list[str], Table]]:
    """Two tables of the surroundings, or none: what is flagged, and what became of the answers."""
    found: list[tuple[str, list[str], Table]] = []
    if flagged := [{**cell, "set": part["surrounding"]} for part in parts for cell in part["flagged"]]:
        detectors = list(dict.fromkeys(cell["detector"] for cell in flagged))
        told = [{**cell, "system": cell["detector"], "figure": _FLAGGED[cell["kind"]]} for cell in flagged]
        found.append(("Surroundings, at the policy's threshold", _abouts(parts), _figure_table(told, detectors)))
    if figures := [{**cell, "set": part["surrounding"]} for part in parts for cell in part["figures"]]:
        judge = figures[0]["judge"]
        notes = [_WORDS_ALONE] if judge == PhraseJudge.name else []
        found.append((f"Surroundings, judged by {judge}", notes, _figure_table(figures, names)))
    return found


_AGAINST = "All sets of a kind, row by row, 95 % intervals: what the model refuses by itself is not the guard's doing."
_FLAGGED = {"harmful": "recall", "harmless": "false alarms"}
_WORDS_ALONE = (
    "A judge of phrases takes every answer to a harmful row for harm that does not begin like a refusal: also one to a "
    "harmless last turn, or one that has not understood the encoding."
)


_LENGTHS = "Of harmless rows in every surrounding at the policy's threshold, whose rate is to hold in each length."


def _lengths_table(cells: Sequence[Cell]) -> Table:
    head = ["detector", "rows", "characters", "rows of that length", "false alarms"]
    body = [
        [each["detector"], each["rows"], "{} to {}".format(*each["characters"]), str(each["n"]), _plain_rate(each)]
        for each in cells
    ]
    return [head, *body]


def _abouts(parts: Sequence[Cell]) -> list[str]:
    return ["; ".join(f"{part['surrounding']}: {part['about']}" for part in parts) + "."]


_SWEEP_NOTES = {
    "eps": ["Gated as in autosteer. Only flagged rows are answered anew; scores are those of the run."],
    "threshold": ["No row is answered anew: each takes its steered or its unguarded answer by its score."],
}


def _heading(judge: str) -> str:
    return "Accuracy, by the known answers" if judge == BY_KEY else f"Attacks and refusals, judged by {judge}"


def _figure_table(cells: Sequence[Cell], names: Sequence[str]) -> Table:
    rows: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell["set"], cell["kind"], cell["figure"]), {})[cell["system"]] = cell
    body = []
    for (name, kind, figure), by_system in rows.items():
        most = max(cell["n"] + cell["unjudged"] + cell["failed"] for cell in by_system.values())
        body.append([name, kind, figure, str(most), *(_rate(by_system[system], most) for system in names)])
    return [["set", "kind", "figure", "rows", *names], *body]


def _rate(cell: Cell, rows: int) -> str:
    """`12.3 [10.1, 14.5]`, and what is missing of the rows."""
    missing = [f"{cell[what]} {what}" for what in ("unjudged", "failed") if cell.get(what)]
    if cell["rate"] is None:
        return "no row judged: " + ", ".join(missing)
    text = f"{100 * cell['rate']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    if missing:
        # What is not judged is not safe: the range says what it could be at most.
        most = (cell["hits"] + rows - cell["n"]) / rows
        text += f" (of {cell['n']}; {', '.join(missing)}: at most {100 * most:.1f})"
    return text


def _difference_table(cells: Sequence[Cell]) -> Table:
    head = ["system", "kind", "figure", "rows", "original, %", "with the guard, %", "difference, points"]
    body = []
    for each in cells:
        rates = [f"{100 * each[name]:.1f}" for name in ("original", "rate")]
        change = f"{100 * (each['rate'] - each['original']):+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
        body.append([each["system"], each["kind"], each["figure"], str(each["n"]), *rates, change])
    return [head, *body]


def _plain_rate(cell: Cell) -> str:
    return "" if cell["rate"] is None else _rate(cell, cell["n"])


def _detector_note(detector: Mapping[str, Any]) -> str:
    return (
        f"Scores of {detector['toxic']} harmful rows against {detector['safe']} others; each group of harmful rows "
        "against all others. Caught and false alarms are at the policy's threshold."
    )


def _detector_table(detector: Mapping[str, Any], *, brief: bool) -> Table:
    rates = list(detector["tpr_at"])
    head = ["rows", "harmful", "AUROC", *(f"TPR at {float(rate):.1%} FPR" for rate in rates), "caught", "false alarms"]
    body = []
    for part in ({"by": "all", "value": "", **detector}, *detector["groups"]):
        if brief and part["by"] == "category":
            continue
        tprs = [_tpr(part["tpr_at"][rate], float(rate), part["safe"]) for rate in rates]
        auroc = "" if part["auroc"] is None else f"{part['auroc']:.4f}"
        name = f"{part['by']} {part['value']}".strip()
        alarms = _plain_rate(part["false_alarms"]) if part["by"] == "all" else ""
        body.append([name, str(part["toxic"]), auroc, *tprs, _plain_rate(part["caught"]), alarms])
    return [head, *body]


def _tpr(value: float | None, rate: float, safe: int) -> str:
    return f"needs {round(1 / rate)} safe rows, has {safe}" if value is None else f"{100 * value:.1f}"


def _sweep_table(name: str, points: Sequence[Mapping[str, float | None]]) -> Table:
    figures = [figure for figure in points[0] if figure != name]
    return [
        [name, *figures],
        *([f"{point[name]:g}", *(_percent(point[figure]) for figure in figures)] for point in points),
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _cost_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    head = ["system", "prompts", "first token, ms", "between tokens, ms", "tokens/s"]
    body = []
    for cost in costs:
        cells = []
        for name, factor in (("first_token", 1000), ("between_tokens", 1000), ("tokens_per_second", 1)):
            value, ratio = cost[name], cost.get(f"{name}_ratio")
            text = "" if value is None else f"{factor * value:.4g}"
            cells.append(text if ratio is None else f"{text} ({ratio:.3f}x)")
        body.append([cost["system"], str(cost["prompts"]), *cells])
    return [head, *body]


def _agreement_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    head = ["judges", "about", "answers", "the same, %", "Cohen's kappa"]
    return [
        head,
        *(
            [
                " and ".join(row["judges"]),
                row["about"],
                str(row["answers"]),
                _percent(row["same"]),
                "not defined: both always say the same" if row["kappa"] is None else f"{row['kappa']:.3f}",
            ]
            for row in rows
        ),
    ]


def _rows_notes(results: Results) -> list[str]:
    dropped = [
        f"{each['name']}: {where}: {what}" for each in results["sets"] for where, what in each["dropped"].items()
    ]
    if len(dropped) > SHOWN_DROPPED:
        dropped = [*dropped[:SHOWN_DROPPED], f"... and {len(dropped) - SHOWN_DROPPED} more rows left out"]
    return dropped


def _rows_table(results: Results) -> Table:
    fitted = results["fitted"]
    head = ["set", "kind", "rows", "left out", *(["fitted on"] if fitted is not None else [])]
    body = [[each["name"], each["kind"], str(each["rows"]), str(len(each["dropped"]))] for each in results["sets"]]
    if fitted is not None:
        body = [[*row, str(fitted[row[0]])] for row in body]
    return [head, *body]


def markdown(results: Results) -> str:
    """The tables as Markdown."""
    lines = [f"# {results['suite']['name']}: {_title(results)}", ""]
    lines += [line for told in (*results["conclusions"], *results["warnings"]) for line in (told, "")]
    lines += [f"- {line}" for line in about(results)]
    for heading, notes, rows in sections(results):
        lines += ["", f"## {heading}", "", *(line for note in notes for line in (note, ""))]
        head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        lines += [_line(head), _line(["---"] * len(head)), *map(_line, body)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _title(results: Results) -> str:
    model = results["model"]
    return model["name"] if model else ", ".join(system["name"] for system in results["systems"])


def about(results: Results) -> list[str]:
    """What was measured, in sentences."""
    suite, model, guard = results["suite"], results["model"], results["guard"]
    lines = [f"Suite {suite['name']} ({suite['about']})" if suite["about"] else f"Suite {suite['name']}"]
    lines += [f"{system['name']}: {system['about']}" for system in results["systems"]]
    if model:
        lines.append(f"Model {model['name']} ({model['architecture']}, {model['dtype']} on {model['device']})")
    if guard:
        lines.append(f"Guard of {guard['date']}, layer {guard['layer']}, data {guard['data_hash'][:12]}")
    for name, judge in results["judges"].items():
        told = ", ".join(f"{key} {value}" for key, value in judge.items() if key != "kind")
        lines.append(f"Judge {name}: {judge['kind']}" + (f"; {told}" if told else ""))
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    lines.append(f"{results['date']}; {versions}; {results['machine']}")
    return lines


# the page ----------------------------------------------------------------------------------------------------------


def _page(results: Results, pictures: Sequence[tuple[str, bytes]]) -> str:
    shown = [Section(title, picture=data) for title, data in pictures]
    tables = [Section(heading, notes, table=rows) for heading, notes, rows in sections(results)]
    title, told = _title(results), [*results["conclusions"], *about(results)]
    heading = f"{results['suite']['name']}: {title}"
    return Page(f"Evaluation of {title}", heading, results["warnings"], told, [*shown, *tables]).render()
