"""Names and shapes that results, reports and comparisons share."""

from __future__ import annotations

BY_KEY = "known answers"  # who marks accuracy, whatever judge marks the rest

Table = list[list[str]]  # rows of cells, the header first
