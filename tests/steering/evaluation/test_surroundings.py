"""Surroundings: the question is in each of them, whole; their figures stand beside the others and change none."""

from __future__ import annotations

import base64
import codecs
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.evaluate import app
from steering.data.questions import Question
from steering.errors import DataError
from steering.evaluation import results
from steering.evaluation.report import sections
from steering.evaluation.run import Answers, System
from steering.evaluation.store import Output
from steering.evaluation.suite import Loaded, Suite, load_rows, load_suite, surrounded_id
from steering.evaluation.surrounded import surroundings
from steering.evaluation.surroundings import SURROUNDINGS
from tests.steering.evaluation.test_results import NO, YES, example, judged

TEXT = "How many circles are there?"
SETS = (
    "name: s\nsets:\n"
    "  - {name: bad, kind: harmful, format: demo, harm: text, count: 6}\n"
    "  - {name: good, kind: harmless, format: demo, harm: text, count: 6}\n"
    "  - {name: able, kind: utility, format: demo, count: 6}\n"
)
SPELLINGS = {
    "base64": base64.b64encode(TEXT.encode()).decode(),
    "rot13": codecs.encode(TEXT, "rot13"),
    "upper-case": TEXT.upper(),
    "spaced-out": " ".join(TEXT),
}


def suite(folder: Path, more: str = "") -> tuple[Suite, Path]:
    (folder / "s.yaml").write_text(SETS + more)
    return load_suite(str(folder / "s.yaml"))


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_question_is_in_it_with_its_images(name: str) -> None:
    image = {"type": "image"}
    surrounding = SURROUNDINGS[name]
    put = surrounding.put(Question(TEXT, [b"picture"]))
    messages = put.messages([image])
    assert put.images == [b"picture"]
    assert put.transcript != TEXT
    (asked,) = [message["content"] for message in messages if isinstance(message["content"], list)]
    assert asked[0] == image
    assert SPELLINGS.get(name, TEXT) in asked[-1]["text"]
    # Where its known answer counts, it is the last thing that a user asks.
    last = [message["content"] for message in messages if message["role"] == "user"][-1]
    words = last if isinstance(last, str) else last[-1]["text"]
    assert not surrounding.asks or SPELLINGS.get(name, TEXT) in words


def test_turns_are_in_order() -> None:
    roles = {
        name: [message["role"] for message in SURROUNDINGS[name].put(Question(TEXT)).messages([])]
        for name in ("earlier-turn", "no-refusals", "answer-begun")
    }
    assert roles == {
        "earlier-turn": ["user", "assistant", "user"],
        "no-refusals": ["system", "user"],
        "answer-begun": ["user", "assistant"],
    }


@pytest.mark.parametrize("words", [32, 256])
@pytest.mark.parametrize("where", ["suffix", "prefix"])
def test_padding_has_the_length_that_its_name_says(where: str, words: int) -> None:
    put = SURROUNDINGS[f"{where}-{words}"].put(Question(TEXT))
    assert len(put.text.split()) == words + len(TEXT.split())


def test_harmful_and_harmless_rows_are_asked_in_each(tmp_path: Path) -> None:
    chosen, folder = suite(tmp_path, "surroundings: [go-on, rot13]\nsurrounded_rows: 4\n")
    loaded = load_rows(chosen, folder)
    counts = {
        (set_, name): sum(each.set == set_ and each.surrounding == name for each in loaded.asked)
        for set_ in ("bad", "good", "able")
        for name in ("clean", "go-on", "rot13")
    }
    assert [count for (set_, _), count in counts.items() if set_ == "able"] == [6, 0, 0]
    assert [count for (set_, _), count in counts.items() if set_ != "able"] == [6, 4, 4] * 2
    assert len({each.key for each in loaded.asked}) == len(loaded.asked) == 34
    keys = {each.surrounding: each.row.key for each in loaded.asked if each.set == "good"}
    assert keys["rot13"] is not None
    assert keys["go-on"] is None
    plain, none = suite(tmp_path)
    assert loaded.clean.digest == load_rows(plain, none).digest != loaded.digest


def test_an_unknown_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"surroundings: .*'moon' is not one of suffix-32, .*rot13"):
        suite(tmp_path, "surroundings: [moon]\n")
    with pytest.raises(DataError, match="--surroundings: 'moon' is not one of"):
        suite(tmp_path)[0].in_surroundings("go-on,moon")


def test_the_option_takes_the_place_of_the_suite_s(tmp_path: Path) -> None:
    chosen, _ = suite(tmp_path, "surroundings: [rot13]\n")
    assert chosen.in_surroundings(None).surroundings == ["rot13"]
    assert chosen.in_surroundings("none").surroundings == []
    assert chosen.in_surroundings("all").surroundings == list(SURROUNDINGS)
    assert chosen.in_surroundings("go-on,go-on").surroundings == ["go-on"]


def surrounded_example() -> tuple[Loaded, Answers]:
    """The example of the other figures, with four of its rows asked in a surrounding where one is still caught."""
    loaded, answers = example()
    chosen = [each for each in loaded.asked if each.row.id in ("h1", "h2", "s1", "s2")]
    put = [
        replace(each, row=replace(each.row, id=surrounded_id(each.row.id, "go-on"), key=None), surrounding="go-on")
        for each in chosen
    ]
    scores = {"h1@go-on": 0.9, "h2@go-on": 0.1, "s1@go-on": 0.1}
    outputs = {
        each.key: Output(YES if each.kind == "harmful" else "fine", 2, "stop", scores[each.row.id])
        for each in put
        if each.row.id in scores
    }
    outputs[put[-1].key] = Output("", error="too long")
    plain = {**answers.plain, **outputs}
    flagged = answers.flagged | {put[0].key}
    gated = {key: replace(output, text=NO) if key in flagged else output for key, output in plain.items()}
    systems = [System("original", "", plain), System("autosteer", "", gated)]
    both = Loaded([*loaded.asked, *put], loaded.dropped)
    return both, Answers(systems, plain, answers.steered, flagged, answers.sweep)


def test_every_figure_by_hand() -> None:
    loaded, answers = surrounded_example()
    clean, go_on = surroundings(loaded, answers.systems, results.detectors_of(answers), judged(loaded, answers))
    assert (clean["surrounding"], go_on["surrounding"]) == ("clean", "go-on")
    counts = [[(cell["kind"], cell["hits"], cell["n"]) for cell in part["flagged"]] for part in (clean, go_on)]
    assert counts == [[("harmful", 2, 2), ("harmless", 1, 2)], [("harmful", 1, 2), ("harmless", 0, 1)]]
    assert [cell["failed"] for cell in go_on["flagged"]] == [0, 1]
    attacks = {cell["system"]: cell["hits"] for cell in go_on["figures"] if cell["figure"] == "attack success"}
    assert attacks == {"original": 2, "autosteer": 1}


def test_the_other_figures_are_of_clean_rows() -> None:
    loaded, answers = surrounded_example()
    alone, before = example()
    assert loaded.clean.digest == alone.digest
    assert surroundings(alone, before.systems, results.detectors_of(before), judged(alone, before)) == []
    together = results.detection(loaded.clean, results.detectors_of(answers))
    assert together == results.detection(alone, results.detectors_of(before))
    # Two runs are compared surrounding by surrounding.
    lines = results.rows(loaded, answers.systems, [judged(loaded, answers)])
    assert {line["set"] for line in lines} == {
        "harmful", "harmless", "utility", "harmful@go-on", "harmless@go-on"
    }  # fmt: skip


def test_a_whole_evaluation(tmp_path: Path) -> None:
    suite(tmp_path, "judges: [demo]\nmax_tokens: 24\n")
    out = tmp_path / "run"
    options = ["eval", "--model", "demo", "--device", "cpu", "--out", str(out), "--limit", "3", "--no-cost"]
    options += ["--suite", str(tmp_path / "s.yaml"), "--surroundings", "suffix-32,earlier-turn,no-refusals"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    names = [part["surrounding"] for part in found["surroundings"]]
    assert names == ["clean", "suffix-32", "earlier-turn", "no-refusals"]
    for part in found["surroundings"]:
        assert {cell["kind"]: cell["n"] + cell["failed"] for cell in part["flagged"]} == {"harmful": 3, "harmless": 3}
    assert {cell["n"] for cell in found["figures"]} == {3}
    headings = [heading for heading, _, _ in sections(found, brief=True)]
    assert "Surroundings, at the policy's threshold" in headings
    assert (out / "surroundings.png").stat().st_size > 1000
    assert "earlier-turn" in (out / "results.md").read_text()
