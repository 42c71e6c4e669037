"""Pages that hold everything they show: figures as PNG, tables, one style."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TOXIC, SAFE, ACCENT, GREY = "#c0392b", "#2471a3", "#1e8449", "#7f8c8d"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b2631 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; border-bottom: 1px solid #d5d8dc;
text-align: right } td:first-child, th:first-child { text-align: left } img { max-width: 100% }
.warning { background: #fdebd0; border-left: 4px solid #ca6f1e; padding: .4rem 1rem; margin: .5rem 0 }
code { overflow-wrap: anywhere }
"""


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


def picture(title: str, data: bytes) -> str:
    """A PNG file inside a page."""
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML already."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table; the first row is the head."""
    lines = [
        "".join(f"<{cell}>{html.escape(value)}</{cell}>" for value in row)
        for place, row in enumerate(rows)
        for cell in ["th" if place == 0 else "td"]
    ]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
