"""What the report of a fit shows by category: what is flagged, and how well categories are told apart."""

from __future__ import annotations

from collections.abc import Mapping

from steering.fitting.page import Section
from steering.specs import CategoriesSpec


def category_sections(flagged: Mapping[str, Mapping[str, float]], told: CategoriesSpec | None) -> list[Section]:
    """The tables of both; nothing is told apart without such a reader."""
    found = [Section("By category, on fresh prompts", table=_flagged_rows(flagged))]
    if told is not None:
        notes = [f"{FIGURES[name]}: {value:.4f}." for name, value in told.figures.items() if name in FIGURES]
        found.append(Section("Categories told apart, on fresh harmful prompts", notes=notes, table=told.table))
    return found


FIGURES = {
    "macro_auroc": "Macro AUROC against the other categories, prompts alone",
    "macro_auroc_surrounded": "the same in all surroundings",
    "macro_auroc_harmless": "against harmless prompts",
}


def _flagged_rows(categories: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    rows = [["category", "toxic", "flagged", "safe", "flagged"]]
    for name, row in categories.items():
        cells = [
            (f"{row[label]:.0f}", f"{row[f'{label}_flagged']:.1%}")
            if label in row
            else ("0", "" if row else "not measured")
            for label in ("toxic", "safe")
        ]
        rows.append([name, *cells[0], *cells[1]])
    return rows
