"""What the first lines of a fit say of what it is worth."""

from __future__ import annotations

import torch

from models import demo
from steering.data.questions import Question
from steering.fitting.dataset import Dataset
from steering.fitting.items import Item
from steering.fitting.verdict import headline, swapped_warning, words_warning
from steering.manifest import load_manifest


def test_a_guard_that_catches_little_is_not_to_be_served() -> None:
    good = load_manifest(demo.GUARD)
    assert headline(good, 0.01).startswith("The guard catches 9")
    weak = good.model_copy(update={"validation": {**good.validation, "tpr": 0.0105}})
    assert headline(weak, 0.01).startswith("DO NOT SERVE THIS GUARD: it catches 1.1% of harm like yours")
    assert "--target-fpr" in headline(weak, 0.01)


def test_words_that_beat_the_guard_are_told_of() -> None:
    assert "Words beat the guard: a bag of words reaches AUROC 0.917" in words_warning(0.764, 0.917)[0]
    assert words_warning(0.99, 0.98) == []


def test_pairs_look_swapped_where_toxic_sides_are_nearer_to_harmless_prompts() -> None:
    pairs = [Item(f"p{n}", Question(f"t{n}"), Question(f"s{n}")) for n in range(40)]
    alone = [Item(f"b{n}", None, Question(f"b{n}")) for n in range(40)]
    dataset = Dataset.of({"train": [*pairs, *alone]})
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(dataset.questions), 8, generator=generator)
    toxic, _ = dataset.twins("train")
    states[toxic] += 3
    assert swapped_warning(dataset, states) == []
    swapped = Dataset.of({"train": [*(Item(each.id, each.safe, each.toxic) for each in pairs), *alone]})
    _, harmful = swapped.twins("train")  # what is harmful stands in the safe column now
    states = torch.randn(len(swapped.questions), 8, generator=generator)
    states[harmful] += 3
    (told,) = swapped_warning(swapped, states)
    assert told.startswith("The pairs look swapped: in ")
