"""Names and shapes that results, reports and comparisons share."""

from __future__ import annotations

from typing import Literal

BY_KEY = "known answers"  # who marks accuracy, whatever judge marks the rest

NO_CATEGORY = "(none)"  # the name of rows that have none

LocalMode = Literal["original", "steer-always", "autosteer", "block"]
LOCAL_MODES: tuple[LocalMode, ...] = ("original", "steer-always", "autosteer", "block")

Table = list[list[str]]  # rows of cells, the header first
