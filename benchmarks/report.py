"""What a scenario found: a table, its goals, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.estimate import Estimate


@dataclass(frozen=True)
class Goal:
    """A ratio that must not be below, or not above, a bound."""

    what: str
    found: Estimate
    at_least: float | None = None
    at_most: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the median is within the bounds; None where there are none."""
        value = self.found.value
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    @property
    def verdict(self) -> str:
        """Whether it is kept, in a word; two where the interval holds values on both sides of the bound."""
        if self.kept is None:
            return ""
        word = "yes" if self.kept else "NO"
        straddles = any(b is not None and self.found.low < b < self.found.high for b in (self.at_least, self.at_most))
        return f"{word}, unsure" if straddles else word

    @property
    def bound(self) -> str:
        """The bounds in words."""
        parts = [(">=", self.at_least), ("<=", self.at_most)]
        return " and ".join(f"{sign} {bound:.4g}" for sign, bound in parts if bound is not None)


@dataclass
class Report:
    """One scenario's findings; `failed` where it could not be measured."""

    name: str
    title: str
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def markdown(self) -> str:
        """As it stands in a document."""
        parts = [f"## {self.name}: {self.title}"]
        if self.rows:
            parts.append(table(self.columns, self.rows))
        if self.goals:
            parts.append(
                table(
                    ("ratio, median (95 % interval)", "found", "goal", "kept"),
                    [(g.what, g.found.show(3), g.bound, g.verdict) for g in self.goals],
                )
            )
        parts += self.notes
        return "\n\n".join(parts) + "\n"

    def json(self) -> dict[str, Any]:
        """Everything, for a file."""
        goals = [{**asdict(goal), "kept": goal.kept} for goal in self.goals]
        shown = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"name": self.name, "title": self.title, "rows": shown, "goals": goals, "notes": self.notes, **self.data}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns in line."""
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]])


def ms(seconds: float) -> str:
    """Milliseconds."""
    value = seconds * 1e3
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"
