"""Which windows of a prompt are harmful: those of the words that are, wherever they stand in it."""

from __future__ import annotations

import pytest

from models.backbone import Backbone
from steering.fitting.spans import UNKNOWN, labels_of, place_of
from tests.tiny import every_family


@pytest.mark.parametrize("text", ["{}", "circles are red {}", "{} circles are red", "signs {} squares"])
@every_family
def test_words_are_found_wherever_they_stand(backbone: Backbone, text: str) -> None:
    words = "What is in the picture, and why?"
    ids = backbone.inputs.build([{"role": "user", "content": text.format(words)}], []).ids
    place = place_of(backbone.tokenizer, ids, words)
    assert place is not None
    found = backbone.tokenizer.decode(ids[place[0] : place[1]]).strip()
    assert found.endswith(words.split(" ", 1)[1])
    assert found.count("circles") + found.count("squares") == 0
    assert place_of(backbone.tokenizer, ids, words.upper()) is None
    assert place_of(backbone.tokenizer, ids, "") is None


def test_windows_of_the_words_are_harmful_and_those_before_them_are_not() -> None:
    windows = [(0, 8), (4, 12), (8, 16), (12, 20), (16, 24), (20, 28)]
    assert labels_of(windows, (12, 20)).tolist() == [0, 0, 1, 1, 1, UNKNOWN]
    assert labels_of(windows, (13, 20)).tolist() == [0, 0, UNKNOWN, 1, 1, UNKNOWN]
