"""What dashboards are made of: panels with their queries, units, levels and words, variables and annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap", "state-timeline"]
Unit = Literal["percentunit", "s", "short", "reqps", "cps", "none", "suffix: tokens/s"]
Colour = Literal["green", "yellow", "orange", "red", "blue"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and how its series are called in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Levels:
    """What a value means: `base` from the lowest value on, then each colour from its value on."""

    base: Colour
    steps: Sequence[tuple[float, Colour]]


@dataclass(frozen=True)
class Word:
    """What stands for a number where that is a state."""

    text: str
    colour: Colour


@dataclass(frozen=True)
class Panel:
    """One panel. `text` says what it means to the reader of the dashboard; `alerts` are those that watch the same."""

    title: str
    queries: Sequence[Query]
    text: str
    unit: Unit = "short"
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    levels: Levels | None = None
    words: Mapping[int, Word] = field(default_factory=dict)
    maximum: float | None = None
    logarithmic: bool = False
    names: bool = False  # a stat that shows what its series is called instead of a number
    alerts: Sequence[str] = ()


@dataclass(frozen=True)
class Variable:
    """What the reader can narrow the dashboard to: the values of a label. `wild`: all is also what has no value yet."""

    name: str
    title: str
    metric: str
    wild: bool

    @property
    def query(self) -> str:
        """As Grafana asks for the values; the variables have their labels' names."""
        return f"label_values({self.metric}, {self.name})"


@dataclass(frozen=True)
class Annotation:
    """A mark over all panels, where the query has a value above 0, or at the milliseconds that it gives."""

    title: str
    expr: str
    text: str
    colour: Colour
    timed: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A row of panels after another."""

    uid: str
    title: str
    variables: Sequence[Variable]
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def panels(self) -> list[Panel]:
        """All panels, in the order in which they stand."""
        return [panel for _, panels in self.rows for panel in panels]
