"""Rows of the demo model's drawn world, of its test split."""

from __future__ import annotations

from models.demo.dialogue import Example, HarmKind, pairs, utility
from steering.evaluation.answers import Key
from steering.evaluation.sets import Kind, Row
from steering.fitting.demo_data import question


def demo_rows(name: str, kind: Kind, harm: HarmKind | None, count: int, seed: int) -> list[Row]:
    """Rows of a set of this name: of a kind of harm, one side of each pair; without one, harmless tasks."""
    if harm is None:
        return [_row(example, None, kind, name) for example in utility(count, seed, "test")]
    twins = pairs(count, seed, "test", [harm])
    return [_row(pair.toxic if kind == "harmful" else pair.safe, harm, kind, name) for pair in twins]


def _row(example: Example, harm: HarmKind | None, kind: Kind, name: str) -> Row:
    asked = question(example)
    return Row(
        id=example.id,
        question=asked,
        category=example.category,
        modality=harm or ("image" if asked.images else "text"),
        key=None if kind == "harmful" else Key((example.answer,), "exact"),
        where=f"{name}:{example.id}",
    )
