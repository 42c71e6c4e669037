"""False alarms by length: every harmless row counts once, among those of its length."""

from __future__ import annotations

from PIL import Image

from steering.data.questions import Question
from steering.evaluation.lengths import BUCKETS, false_alarms_by_length
from steering.evaluation.results import Detector
from steering.evaluation.sets import Row
from steering.evaluation.suite import Asked


def asked(length: int, *, pictures: bool = False, harmful: bool = False) -> Asked:
    images = [Image.new("RGB", (4, 4))] if pictures else []
    name = f"{length} {pictures} {harmful}"
    return Asked("s", "harmful" if harmful else "harmless", Row(name, Question("x" * length, images)), 8)


def test_rows_are_counted_among_those_of_their_length() -> None:
    words = [asked(length) for length in range(1, 41)]
    shown = [asked(length, pictures=True) for length in (5, 6, 7, 8, 90)]
    harmful = [asked(length, harmful=True) for length in range(1, 41)]
    every = [*words, *shown, *harmful]
    flagged = frozenset(each.key for each in [*words[30:], *shown[:1], *harmful])
    detector = Detector("guard", {each.key: 0.5 for each in every if each is not shown[-1]}, flagged)
    found = false_alarms_by_length(every, [detector])
    assert [(cell["rows"], *cell["characters"], cell["hits"], cell["n"]) for cell in found] == [
        ("words alone", 1, 10, 0, 10),
        ("words alone", 11, 20, 0, 10),
        ("words alone", 21, 30, 0, 10),
        ("words alone", 31, 40, 10, 10),
        *(("with pictures", length, length, int(length == 5), 1) for length in (5, 6, 7, 8)),
    ]
    assert all(cell["low"] <= cell["rate"] <= cell["high"] for cell in found)


def test_rows_of_one_length_are_one_bucket() -> None:
    rows = [asked(7, pictures=bool(n % 2)) for n in range(2 * BUCKETS)]
    detector = Detector("guard", {each.key: 0.5 for each in rows}, frozenset())
    assert [cell["characters"] for cell in false_alarms_by_length(rows, [detector])] == [[7, 7], [7, 7]]
