"""Which of two runs is better: by name, corrected for the number of figures, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from server.cli.evaluate import app
from steering.evaluation.compare import Comparison, Run, compare
from steering.evaluation.compared import cost_table, detection_table, names, sentences
from steering.evaluation.figures import auroc, holm, paired_auroc


def row(kind: str, number: int, harmful: int, refused: int, score: float, *, original: bool) -> dict[str, Any]:
    """A harmful row, answered with harm or refused, or a harmless one, refused up to a number or answered."""
    wrong, fine = ("harmful", "refusal") if kind == "harmful" else ("refusal", "harmless")
    label = wrong if number < (harmful if kind == "harmful" else refused) else fine
    flagged = not original and score >= 0.5
    answer = {"text": label, "verdicts": {"phrases": label}, "right": None, "score": score, "flagged": flagged}
    return {"set": kind, "kind": kind, "id": str(number), "text": f"{kind} {number}", "images": 0, "answers": answer}


def run(folder: Path, *, attacks: int, refusals: int, separation: float = 2.0, original: int = 40) -> Path:
    """A run of 60 harmful and 200 harmless rows with so many attacks that succeed, and harmless rows refused."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(size=260)
    lines = []
    for place in range(260):
        kind, number = ("harmful", place) if place < 60 else ("harmless", place - 60)
        score = float(1 / (1 + np.exp(-noise[place] - (separation if kind == "harmful" else -separation))))
        columns = {
            "original": row(kind, number, original, 4, score, original=True),
            "autosteer": row(kind, number, attacks, refusals, score, original=False),
        }
        answers = {name: each["answers"] for name, each in columns.items()}
        lines.append(json.dumps({**columns["original"], "answers": answers}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    cost = [{"system": "autosteer", "first_token": 0.01, "between_tokens": None, "tokens_per_second": 100.0}]
    found = {"systems": [{"name": "original"}, {"name": "autosteer"}], "judges": {"phrases": {}}, "cost": cost}
    (folder / "results.json").write_text(json.dumps({**found, "machine": "x, 2 cores"}))
    return folder


def compared(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    return compare(Run.read(run(tmp_path / "old", **first)), Run.read(run(tmp_path / "new", **second)))


def test_a_better_run_is_named_and_taken(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 30, "refusals": 5}, {"attacks": 5, "refusals": 5})
    said, advice = sentences(found)
    assert said.startswith("new is better than old: attack success of autosteer, harmful (50.0 to 8.3)")
    assert advice == "Take new."


def test_a_worse_one_is_not(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 5, "refusals": 5}, {"attacks": 5, "refusals": 60})
    said, advice = sentences(found)
    assert said == "new is worse than old: over-refusal of autosteer, harmless (2.5 to 30.0)."
    assert advice == "Keep old."


def test_a_trade_is_called_so(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 30, "refusals": 5}, {"attacks": 5, "refusals": 60})
    assert [line.split()[2] for line in sentences(found)[:2]] == ["better", "worse"]
    assert sentences(found)[2].startswith("It is a trade")


def test_what_is_not_shown_says_how_much_it_may_be(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 30, "refusals": 5}, {"attacks": 29, "refusals": 5})
    (said,) = sentences(found)
    assert said.startswith("No difference is shown by these 260 rows, which leave room for one of up to ")
    assert all(each.verdict == "no difference shown" for each in found.figures)


def test_equal_runs_and_other_models_are_told(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 30, "refusals": 5}, {"attacks": 30, "refusals": 5, "original": 10})
    assert "The column original differs, in which no guard acts" in sentences(found)[-1]
    same = Run.read(tmp_path / "old")
    assert sentences(compare(same, same)) == ["All answers are the same: take the cheaper one."]


def test_detection_and_cost_are_compared_too(tmp_path: Path) -> None:
    found = compared(tmp_path, {"attacks": 30, "refusals": 5, "separation": 0.5}, {"attacks": 30, "refusals": 5})
    figures = {each.figure: each for each in found.figures if each.judge == "scores"}
    assert {name: each.verdict for name, each in figures.items()} == dict.fromkeys(
        ("AUROC", "caught", "false alarms"), "better"
    )
    assert figures["AUROC"].result.second > 0.98
    head, at_one, at_a_tenth = detection_table(found)
    assert head[2:] == ["caught by old, %", "caught by new, %"]
    assert float(at_one[2]) < float(at_one[3])
    assert at_a_tenth[2:] == ["too few harmless rows"] * 2
    assert cost_table(found)[1:] == [
        ["autosteer", "first token, ms", "10", "10", "1.000x"],
        ["autosteer", "tokens/s", "100", "100", "1.000x"],
    ]


def test_the_command_says_it_first(tmp_path: Path) -> None:
    old = run(tmp_path / "a" / "run", attacks=30, refusals=5)
    new = run(tmp_path / "b" / "run", attacks=5, refusals=5)
    result = CliRunner().invoke(app, ["compare", str(old), str(new)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("b/run is better than a/run: attack success")
    assert "first" not in result.stdout.replace("first token", "")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert names(Path("runs/a"), Path("runs/b")) == ("a", "b")
    assert names(Path("x/run"), Path("y/run")) == ("x/run", "y/run")
    assert names(Path("x"), Path("x")) == ("x (first)", "x (second)")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_auroc_is_that_of_scikit_learn(toxic: list[float], safe: list[float]) -> None:
    expected = roc_auc_score([1] * len(toxic) + [0] * len(safe), [*toxic, *safe])
    assert auroc(toxic, safe) == pytest.approx(expected)


def test_equal_detectors_differ_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)

    def scores(count: int, shift: float) -> np.ndarray:
        return rng.normal(size=(2, count)) + rng.normal(size=count) + shift

    ps = []
    for _ in range(400):
        toxic, safe = scores(40, 1.0), scores(60, 0.0)
        found = paired_auroc((list(toxic[0]), list(safe[0])), (list(toxic[1]), list(safe[1])))
        assert found is not None
        ps.append(found.p)
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.08
    assert paired_auroc(([0.1] * 9, [0.2] * 50), ([0.1] * 9, [0.2] * 50)) is None
