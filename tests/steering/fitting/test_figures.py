"""What a report says of categories, and how its plots stay legible."""

from __future__ import annotations

from itertools import pairwise

import torch

from steering.data.questions import Question
from steering.fitting.dataset import Dataset
from steering.fitting.figures import by_category, unmeasured_warning
from steering.fitting.items import Item
from steering.fitting.report import legible


def item(name: str, category: str) -> Item:
    return Item(name, Question(f"toxic {name}"), Question(f"safe {name}"), category=category)


def test_a_category_without_fresh_prompts_is_named() -> None:
    kinds = [f"kind {n}" for n in range(7)]
    dataset = Dataset.of({"train": [item(kind, kind) for kind in kinds], "calibration": [item("x", "seen")]})
    table = by_category(dataset, torch.zeros(16), 0.5)
    assert table["seen"] == {"toxic": 1, "toxic_flagged": 0.0, "safe": 1, "safe_flagged": 0.0}
    assert table["kind 0"] == {}
    (told,) = unmeasured_warning(table)
    assert told.startswith("Not measured: kind 0, kind 1, kind 2, kind 3, kind 4 and 2 more.")
    assert unmeasured_warning({"seen": table["seen"]}) == []


def test_labels_of_small_blocks_give_way_to_those_of_large_ones() -> None:
    assert legible([(0, 40), (40, 41), (41, 42), (42, 80)], 6) == [(0, 40), (40, 41), (42, 80)]
    many = legible([(n, n + 1) for n in range(80)], 80 / 14)
    middles = [(a + b - 1) / 2 for a, b in many]
    assert all(later - earlier >= 80 / 14 for earlier, later in pairwise(middles))
    assert len(many) > 10
