"""The sentences above a run's tables: what the guard is worth, against the model alone, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from steering.data.questions import Question
from steering.evaluation import results
from steering.evaluation.conclusions import conclusions, differences
from steering.evaluation.evaluate import count_fitted
from steering.evaluation.judges import PhraseJudge
from steering.evaluation.run import Answers, System, Verdicts
from steering.evaluation.sets import Row
from steering.evaluation.store import Output
from steering.evaluation.suite import Asked, Loaded
from tests.steering.evaluation.test_results import NO, YES, judged, whole


def run(*, caught: int, alarms: int, alone: int = 0, obeys: bool = True) -> tuple[Loaded, Answers]:
    """40 harmful rows, of which the first are caught, and 40 harmless ones: `alone` are refused by the model itself,
    `alarms` are flagged from the last on."""
    kinds: list[Any] = ["harmful"] * 40 + ["harmless"] * 40
    asked = [Asked(kind, kind, Row(f"r{n}", Question(f"{kind} {n}")), 5) for n, kind in enumerate(kinds)]
    scores = [0.9 if n < caught or n >= 80 - alarms else 0.1 for n in range(80)]
    plain = {
        each.key: Output(YES if n < 40 else NO if n < 40 + alone else "fine", 2, "stop", scores[n], flagged=False)
        for n, each in enumerate(asked)
    }
    flagged = frozenset(each.key for n, each in enumerate(asked) if scores[n] > 0.5)
    bent = {key: replace(output, text=NO if obeys else YES, flagged=True) for key, output in plain.items()}
    gated = {key: bent[key] if key in flagged else output for key, output in plain.items()}
    systems = [System("original", "", plain), System("autosteer", "", gated)]
    return Loaded(asked, {"harmful": {}, "harmless": {}}), Answers(systems, plain, bent, flagged, {})


def said(loaded: Loaded, answers: Answers) -> list[str]:
    return list(whole(loaded, answers)["conclusions"])


def test_a_guard_that_works_is_called_better_by_its_difference() -> None:
    lines = said(*run(caught=38, alarms=0, alone=20))
    assert lines[0].startswith("The guard flags 38 of 40 harmful rows and 0 of 40 harmless ones")
    assert lines[1].startswith(
        "autosteer lets harm through in 5.0 % of 40 harmful rows (100.0 % without a guard, by phrases): better by -95.0"
    )
    # The model refuses half of the harmless rows by itself: that is not the guard's doing.
    assert lines[2].startswith("autosteer refuses 50.0 % of 40 harmless rows (50.0 % without a guard")
    assert "no difference is shown, +0.0 points" in lines[2]
    assert len(lines) == 3


def test_few_rows_are_called_so() -> None:
    lines = said(*run(caught=38, alarms=4))
    assert any("perhaps worse, by +10.0 points" in line and "too few rows to be sure" in line for line in lines)


def test_over_refusal_is_the_difference_to_the_original() -> None:
    loaded, answers = run(caught=38, alarms=12, alone=20)
    (cell,) = [
        each for each in differences(loaded, answers.systems, judged(loaded, answers)) if each["kind"] != "harmful"
    ]
    assert (cell["original"], cell["rate"]) == (0.5, 0.8)
    lines = said(loaded, answers)
    assert any("worse by +30.0 points" in line for line in lines)
    assert any(
        line.startswith("It flags 30% of harmless rows: fit it with harmless prompts like these") for line in lines
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"caught": 0, "alarms": 0}, "No row is flagged, so the guard changes nothing"),
        ({"caught": 10, "alarms": 0}, "DO NOT SERVE THIS GUARD for such prompts"),
        ({"caught": 40, "alarms": 0, "obeys": False}, "Much of what is flagged is still answered with harm"),
    ],
)
def test_what_is_wrong_comes_with_what_to_do(given: dict[str, Any], says: str) -> None:
    assert any(line.startswith(says) for line in said(*run(**given)))


def test_without_the_original_no_difference_can_be_told() -> None:
    loaded, answers = run(caught=38, alarms=0)
    alone = answers.systems[1:]
    assert differences(loaded, alone, judged(loaded, answers)) == []
    lines = conclusions({**whole(loaded, answers), "systems": [{"name": "autosteer"}], "differences": []})
    assert lines[-1].startswith("There is no column `original`")


def test_rows_that_the_guard_was_fitted_on_are_counted_and_marked() -> None:
    loaded, answers = run(caught=38, alarms=0)
    seen = frozenset(each.row.question.fingerprint for each in loaded.asked[38:43])
    assert count_fitted(loaded, seen) == {"harmful": 2, "harmless": 3}
    assert count_fitted(loaded, None) is None
    lines = conclusions({**whole(loaded, answers), "fitted": count_fitted(loaded, seen)})
    assert lines[-1].startswith("The guard was fitted on rows of this run (2 of harmful, 3 of harmless)")
    verdicts = Verdicts(PhraseJudge(), judged(loaded, answers).found)
    marked = [row["fitted"] for row in results.rows(loaded, answers.systems, [verdicts], seen)]
    assert [place for place, fitted in enumerate(marked) if fitted] == [38, 39, 40, 41, 42]


def test_rows_without_a_category_have_a_name() -> None:
    loaded, answers = run(caught=38, alarms=0)
    asked = [
        replace(each, row=replace(each.row, category="known" if n % 2 else "")) for n, each in enumerate(loaded.asked)
    ]
    loaded = replace(loaded, asked=asked)
    groups = results.groups(loaded, answers.systems, judged(loaded, answers))
    assert {cell["value"] for cell in groups if cell["by"] == "category"} == {"known", "(none)"}
