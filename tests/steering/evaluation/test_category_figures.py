"""Figures of categories by hand: of rows that name one of the guard's, against each other and harmless ones."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from steering.evaluation.category_figures import category_figures, category_table
from steering.evaluation.store import Output
from steering.evaluation.suite import Asked
from tests.server.fakes import as_any
from tests.steering.evaluation.test_results import row

NAMES = ("weapons", "fraud", "spam")
GUARDED = as_any(SimpleNamespace(guard=SimpleNamespace(categories=SimpleNamespace(names=NAMES, thresholds=(0.5,) * 3))))
# Row: kind, category, scores of the three.
ROWS = {
    "w1": ("harmful", "weapons", (0.9, 0.1, 0.1)),
    "w2": ("harmful", "weapons", (0.3, 0.2, 0.1)),
    "f1": ("harmful", "fraud", (0.4, 0.8, 0.1)),
    "f2": ("harmful", "fraud", (0.6, math.nan, 0.1)),
    "x1": ("harmful", "unknown", (0.99, 0.99, 0.99)),
    "s1": ("harmless", "", (0.35, 0.0, 0.0)),
    "u1": ("utility", "", (0.99, 0.99, 0.99)),
}
ASKED = [row(name, kind, category=category) for name, (kind, category, _) in ROWS.items()]


def plain(asked: list[Asked]) -> dict[str, Output]:
    return {
        each.key: Output("", score=0.1, categories=dict(zip(NAMES, ROWS[each.row.id][2], strict=True)))
        for each in asked
    }


def test_every_figure_by_hand() -> None:
    found = category_figures(GUARDED, ASKED, plain(ASKED))
    assert found is not None
    weapons, fraud = found["categories"]  # of spam there are no rows
    assert (weapons["category"], fraud["category"]) == ("weapons", "fraud")
    # Weapons: .9 is above both of the others, .3 above none; of the harmless one .35 it is above with .9 alone.
    assert (weapons["auroc"], weapons["auroc_harmless"]) == (0.5, 0.5)
    assert (fraud["auroc"], fraud["auroc_harmless"]) == (1.0, 1.0)  # what is no number is the highest
    assert [(weapons[name]["hits"], weapons[name]["n"]) for name in ("reached", "reached_by_others")] == [
        (1, 2),
        (1, 2),
    ]
    assert (fraud["reached"]["hits"], fraud["reached_by_others"]["hits"]) == (2, 0)
    assert (found["macro_auroc"], found["macro_auroc_harmless"]) == (0.75, 0.75)
    table = category_table(found)
    assert [line[0] for line in table] == ["category", "weapons", "fraud", "macro"]
    assert table[1][1:] == ["2", "0.5000", "0.5000", "0.5000", "50.0", "50.0"]
    assert table[-1][1:4] == ["4", "0.7500", "0.7500"]


def test_rows_of_one_category_and_none_harmless() -> None:
    one = [each for each in ASKED if each.row.category != "fraud"]
    assert category_figures(GUARDED, one, plain(one)) is None
    harmful = [each for each in ASKED if each.kind == "harmful"]
    found = category_figures(GUARDED, harmful, plain(harmful))
    assert found is not None
    assert found["macro_auroc_harmless"] is None
    assert category_table(found)[-1][3] == ""


@pytest.mark.parametrize("guarded", [None, as_any(SimpleNamespace(guard=SimpleNamespace(categories=None)))])
def test_a_guard_without_categories_has_none(guarded: object) -> None:
    assert category_figures(as_any(guarded), ASKED, plain(ASKED)) is None
