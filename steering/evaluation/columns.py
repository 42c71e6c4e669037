"""Names and shapes that results, reports and comparisons share."""

from __future__ import annotations

from typing import Literal

BY_KEY = "known answers"  # who marks accuracy, whatever judge marks the rest

CHANCE = 0.05  # p-value from which a difference may be one of chance
LESS_IS_BETTER = frozenset({"attack success", "over-refusal", "false alarms"})  # of figures; of others more is

LocalMode = Literal["original", "steer-always", "autosteer", "block"]
LOCAL_MODES: tuple[LocalMode, ...] = ("original", "steer-always", "autosteer", "block")

Table = list[list[str]]  # rows of cells, the header first
