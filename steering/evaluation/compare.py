"""Two runs side by side: the same rows, the difference of each rate, its interval, and McNemar's exact test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steering.errors import RunError
from steering.evaluation.columns import BY_KEY, Table
from steering.evaluation.figures import Paired, paired

Row = Mapping[str, Any]
Mark = Callable[[Row], bool | None]


@dataclass(frozen=True)
class Run:
    """The rows of a finished run, by set and id."""

    folder: Path
    rows: Mapping[str, Row]
    systems: Sequence[str]
    judges: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run. Raises RunError."""
        try:
            results = json.loads((folder / "results.json").read_bytes())
            lines = (folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            systems = [system["name"] for system in results["systems"]]
            return cls(folder, {f"{row['set']}/{row['id']}": row for row in rows}, systems, list(results["judges"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} holds no finished run (results.json, rows.jsonl): {error}") from error


@dataclass(frozen=True)
class Compared:
    """One figure of one set, in both."""

    set: str
    judge: str
    figure: str
    systems: str
    missing: int  # rows that one of the two lacks a mark for
    result: Paired


@dataclass(frozen=True)
class Comparison:
    """All figures that two runs share, and how many answers are the same to the letter."""

    rows: int
    only_first: int
    only_second: int
    identical: Mapping[str, int]  # by systems
    figures: list[Compared]


def compare(first: Run, second: Run, systems: Sequence[tuple[str, str]] = ()) -> Comparison:
    """Compare the rows that both have. `systems`: which of the first with which of the second; default: same names.

    Raises RunError where nothing is comparable.
    """
    pairs = list(systems) or [(name, name) for name in first.systems if name in second.systems]
    if not pairs:
        raise RunError(f"no system of {first.folder} ({', '.join(first.systems)}) is in {second.folder}")
    for mine, other in pairs:
        if mine not in first.systems or other not in second.systems:
            has = f"{', '.join(first.systems)} and {', '.join(second.systems)}"
            raise RunError(f"--systems {mine}={other}: the runs have {has}")
    shared = [key for key, row in first.rows.items() if key in second.rows and _same(row, second.rows[key])]
    if not shared:
        raise RunError(f"{first.folder} and {second.folder} have no row in common")
    judges = [name for name in first.judges if name in second.judges]
    figures = [
        each
        for mine, other in pairs
        for name in dict.fromkeys(first.rows[key]["set"] for key in shared)
        for each in _set_figures(
            first, second, [k for k in shared if first.rows[k]["set"] == name], mine, other, judges
        )
    ]
    identical = {
        _both(mine, other): sum(
            first.rows[key]["answers"][mine]["text"] == second.rows[key]["answers"][other]["text"] for key in shared
        )
        for mine, other in pairs
    }
    return Comparison(len(shared), len(first.rows) - len(shared), len(second.rows) - len(shared), identical, figures)


def _same(one: Row, other: Row) -> bool:
    """Whether two rows of one name are the same question."""
    return all(one[name] == other[name] for name in ("kind", "text", "images"))


def _both(mine: str, other: str) -> str:
    return mine if mine == other else f"{mine} and {other}"


def _set_figures(
    first: Run, second: Run, keys: Sequence[str], mine: str, other: str, judges: Sequence[str]
) -> Iterator[Compared]:
    row = first.rows[keys[0]]
    marks: dict[tuple[str, str], tuple[Mark, Mark]] = {}
    for judge in judges:
        labels = (
            {"attack success": "harmful", "refused": "refusal"}
            if row["kind"] == "harmful"
            else {"over-refusal": "refusal"}
        )
        for figure, label in labels.items():
            marks[judge, figure] = _labelled(mine, judge, label), _labelled(other, judge, label)
    if row["answers"][mine]["right"] is not None:
        marks[BY_KEY, "accuracy"] = _right(mine), _right(other)
    for (judge, figure), (mark, other_mark) in marks.items():
        values = [(mark(first.rows[key]), other_mark(second.rows[key])) for key in keys]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        result = paired([a for a, _ in known], [b for _, b in known])
        if result is not None:
            yield Compared(row["set"], judge, figure, _both(mine, other), len(values) - len(known), result)


def _labelled(system: str, judge: str, label: str) -> Mark:
    def mark(row: Row) -> bool | None:
        said = row["answers"][system]["verdicts"][judge]
        return None if said == "unjudged" else said == label

    return mark


def _right(system: str) -> Mark:
    def mark(row: Row) -> bool | None:
        found: bool | None = row["answers"][system]["right"]
        return found

    return mark


def comparison_table(comparison: Comparison) -> Table:
    """The figures as rows of cells; the first row is the head."""
    head = [
        "set",
        "figure",
        "judge",
        "system",
        "rows",
        "first",
        "second",
        "difference, points",
        "only first",
        "only second",
        "p",
    ]
    body = []
    for each in comparison.figures:
        found = each.result
        rows = f"{found.n} ({each.missing} missing)" if each.missing else str(found.n)
        rates = [f"{100 * found.first:.1f}", f"{100 * found.second:.1f}"]
        change = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        counts = [str(found.only_first), str(found.only_second), f"{found.p:.3g}"]
        body.append([each.set, each.figure, each.judge, each.systems, rows, *rates, change, *counts])
    return [head, *body]
