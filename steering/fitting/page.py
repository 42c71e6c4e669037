"""Pages that hold everything they show: figures as PNG, tables, one style."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TOXIC, SAFE, ACCENT, GREY = "#c0392b", "#2471a3", "#1e8449", "#7f8c8d"


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def panel(width: float = 7.5, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` plots side by side; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


@dataclass(frozen=True)
class Section:
    """A part of a page: what is given of it, in this order."""

    heading: str
    notes: Sequence[str] = ()
    picture: bytes | None = None  # a PNG file
    table: Sequence[Sequence[str]] = ()  # the first row is the head
    points: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A page of HTML that needs no other file."""

    title: str
    heading: str
    warnings: Sequence[str]
    lines: Sequence[str]
    sections: Sequence[Section]

    def render(self) -> str:
        """The page; what is in its texts is text."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["b64"] = lambda data: b64encode(data).decode()
        return environment.get_template("page.html.jinja").render(page=self)
