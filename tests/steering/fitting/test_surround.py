"""Rows in surroundings: both classes alike, every row alone as well, and no part sees the words of another."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.evaluation.surroundings import SURROUNDINGS
from steering.fitting.dataset import Dataset
from steering.fitting.items import Item
from steering.fitting.surround import ALONE, COPIES, OWN, PROSE, Row, surrounded

PARTS: tuple[Part, ...] = ("train", "validation", "calibration")


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.of(
        {
            part: [
                Item(f"{part}{n}", Question(f"sharp{part}{n}"), Question(f"round{part}{n}"), split=part)
                for n in range(60)
            ]
            for part in PARTS
        }
    )


def words_of(row: Row) -> set[str]:
    return words_in(row.question.transcript)


def words_in(text: str) -> set[str]:
    return {*re.findall(r"\w+", text.lower())}


def test_every_row_is_there_alone_and_in_surroundings(dataset: Dataset) -> None:
    for part in PARTS:
        rows = surrounded(dataset, (part,), seed=3)
        alone = [row for row in rows if row.surrounding == ALONE]
        assert [row.place for row in alone] == dataset.places(part)
        assert all(row.question is dataset.questions[row.place] for row in alone)
        counts = Counter(row.place for row in rows)
        harmless, harmful = (
            {counts[place] - 1 - COPIES[part] for place in dataset.places(part, label)} for label in (0, 1)
        )
        assert (harmless, harmful) == (({0, 1}, {0, 1}) if part == "train" else ({0, 1, 2}, {0}))
        for row in rows:
            assert dataset.questions[row.place].text in words_of(row)


def test_both_classes_are_surrounded_alike(dataset: Dataset) -> None:
    rows = surrounded(dataset, ("train",), seed=0)
    kinds = [Counter(row.surrounding for row in rows if dataset.labels[row.place] == label) for label in (0, 1)]
    assert {*kinds[0]} == {*kinds[1]}
    assert len(kinds[0]) == 15
    assert min(min(each.values()) for each in kinds) >= 5


def test_the_words_of_a_tool_or_a_system_message_are_the_row_s(dataset: Dataset) -> None:
    rows = surrounded(dataset, PARTS, seed=2)
    for kind, role in (("tool", "tool"), ("system text", "system")):
        found = [row for row in rows if row.surrounding == kind]
        assert found
        for row in found:
            asked = dataset.questions[row.place].text
            (turn,) = (*row.question.before, *row.question.after)
            assert turn.role == role
            assert asked in words_in(turn.text)
            assert dataset.labels[row.place] == 0 or asked not in row.question.text


def test_what_calibrates_is_of_all_lengths(dataset: Dataset) -> None:
    rows = surrounded(dataset, ("calibration",), seed=0)
    words = [len(row.question.transcript.split()) for row in rows if dataset.labels[row.place] == 0]
    assert all(any(low <= count < 2 * low for count in words) for low in (16, 32, 64, 128, 256, 512))
    assert sum(count >= 64 for count in words) / len(words) >= 0.12


def test_no_part_sees_the_words_of_another(dataset: Dataset) -> None:
    lines = [words_in(line) for line in PROSE.read_text().splitlines()]
    seen: dict[Part, set[int]] = {}
    for part in PARTS:
        rows = surrounded(dataset, (part,), seed=1)
        assert not any(f"round{other}" in row.question.transcript for row in rows for other in PARTS if other != part)
        seen[part] = {number for number, line in enumerate(lines) if any(line <= words_of(row) for row in rows)}
    assert all(seen.values())
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_the_model_s_own_words_pad_rows_and_no_part_sees_those_of_another(dataset: Dataset) -> None:
    own = [f"own{number}" for number in range(200)]
    seen = {
        part: {word for row in surrounded(dataset, (part,), 2, own) for word in words_of(row) if word in own}
        for part in PARTS
    }
    assert all(len(words) >= 5 for words in seen.values())
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_the_model_s_own_words_are_harmless_rows_by_themselves(dataset: Dataset) -> None:
    own = [f"own{number}" for number in range(20)]
    rows = [row for part in PARTS for row in surrounded(dataset, (part,), 2, own) if row.surrounding == OWN]
    assert sorted(row.question.text for row in rows) == sorted(own)
    assert all(dataset.labels[row.place] == 0 for row in rows)
    assert Counter(dataset.parts[row.place] for row in rows) == {"train": 12, "validation": 4, "calibration": 4}


def test_the_evaluations_words_are_in_no_surrounding_of_a_fit() -> None:
    asked = Question("")
    evaluated = " ".join(each.put(asked).transcript for each in SURROUNDINGS.values())
    assert not [line for line in PROSE.read_text().splitlines() if line in evaluated]


def test_a_row_knows_which_turn_asks(dataset: Dataset) -> None:
    turns = {row.surrounding: row.turn for row in surrounded(dataset, PARTS, seed=0)}
    later = {"later turn", "tool"}  # of the tool's words, behind its call
    assert {kind: turn for kind, turn in turns.items() if turn} == dict.fromkeys(later, 1)
    assert later <= turns.keys()


def test_the_same_seed_surrounds_alike(dataset: Dataset) -> None:
    one, other, third = (surrounded(dataset, PARTS, seed) for seed in (5, 5, 6))
    assert one == other
    assert one != third
