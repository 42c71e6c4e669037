"""Rows that are too few: everything that is lacking, with the number of rows that would do."""

from __future__ import annotations

import random

import pytest

from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.errors import FitError
from steering.fitting.enough import check_enough, rows_that_do, threshold_rate
from steering.fitting.items import Item
from steering.fitting.parts import split


def pairs(count: int, part: Part | None = None) -> list[Item]:
    return [Item(f"p{n}", Question(f"toxic {n}"), Question(f"safe {n}"), split=part) for n in range(count)]


def harmless(count: int) -> list[Item]:
    return [Item(f"b{n}", None, Question(f"hello {n}")) for n in range(count)]


def test_everything_that_is_lacking_is_told_at_once_with_what_would_do() -> None:
    with pytest.raises(FitError) as caught:
        check_enough(split(pairs(8)), None)
    said = str(caught.value)
    assert "toxic prompts, and each part needs 4, which about 42 toxic prompts in all would give (there are 8)" in said
    assert "safe prompts, and each part needs 4" in said
    assert "cannot promise an FPR of 0.05; 19 can, which about 133 safe prompts in all would give (there are 8)" in said
    assert "\n" not in said


def test_rows_that_name_their_parts_are_told_so() -> None:
    parts: dict[Part, list[Item]] = {
        "train": pairs(10, "train"),
        "validation": pairs(2, "validation"),
        "calibration": pairs(30, "calibration"),
    }
    with pytest.raises(FitError, match=r"the validation part has 2 toxic prompts, .* your rows name their parts: give"):
        check_enough(parts, None)


def test_pairs_are_needed() -> None:
    singles = [Item("a", Question("t"), None), Item("b", None, Question("s"))] * 5
    parts: dict[Part, list[Item]] = {"train": singles, "validation": pairs(10), "calibration": pairs(30)}
    with pytest.raises(FitError, match="the train part has 0 contrast pairs"):
        check_enough(parts, None)


def test_a_wanted_rate_is_asked_for() -> None:
    parts = split([*pairs(200), *harmless(300)])
    assert check_enough(parts, None) == 0.05
    with pytest.raises(FitError, match=r"FPR of 0\.01; 99 can, which about 574 safe prompts in all .*there are 500"):
        check_enough(parts, 0.01)


@pytest.mark.parametrize("needed", [4, 19, 99, 999])
def test_so_many_rows_do_in_nineteen_of_twenty_divisions(needed: int) -> None:
    generator, rows = random.Random(0), rows_that_do(needed)
    enough = [sum(generator.random() < 0.2 for _ in range(rows)) >= needed for _ in range(400)]
    assert 0.9 < sum(enough) / len(enough) < 0.99


def test_no_rate_is_promised_that_the_samples_cannot_carry() -> None:
    assert [threshold_rate(None, n) for n in (19, 98, 99, 5000)] == [0.05, 0.05, 0.01, 0.01]
    assert threshold_rate(0.001, 999) == 0.001
    for rate, samples in ((None, 18), (0.001, 998), (0.01, 98)):
        with pytest.raises(FitError, match=f"{samples} safe calibration prompts cannot promise"):
            threshold_rate(rate, samples)
