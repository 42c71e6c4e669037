"""What a model says in a user's place: as much as is asked for, the same for the same seed."""

from __future__ import annotations

from steering.fitting.own_words import LEAST_WORDS, own_words
from tests.tiny import TinyModels


def test_the_same_seed_draws_the_same_texts(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    ticks: list[int] = []
    one, other, third = (own_words(backbone, seed, ticks.append, 4) for seed in (5, 5, 6))
    assert one == other
    assert one != third
    assert 0 < len(one) <= 4
    assert sum(ticks) == 12
    assert all(len(text.split()) >= LEAST_WORDS for text in one)
    assert backbone.open_rows == 0


def test_none_are_drawn_where_none_are_asked_for(tiny_models: TinyModels) -> None:
    assert own_words(tiny_models.backbone("llava_onevision"), 5, lambda _: None, 0) == []
