"""Surroundings: the question is in each of them, whole; their figures stand beside the others and change none."""

from __future__ import annotations

import base64
import codecs
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from server.cli.evaluate import app
from steering.data.questions import Picture, Question
from steering.errors import DataError
from steering.evaluation import results
from steering.evaluation.remote import _encoded
from steering.evaluation.report import sections
from steering.evaluation.results import Detector
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


MOVED = ("tool-text", "drawn", "image-earlier", "jpeg-40")  # the words, or the images, stand elsewhere


@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if name not in MOVED])
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


def put_into(name: str, *images: Picture) -> list[dict[str, Any]]:
    """The chat, with a part for each image."""
    put = SURROUNDINGS[name].put(Question(TEXT, images))
    return put.messages([{"type": "image"} for _ in put.images])


def test_what_a_tool_told_follows_its_call() -> None:
    asked, called, told = put_into("tool-text")
    assert asked["role"] == "user"
    assert TEXT not in str(asked)
    (call,) = called["tool_calls"]
    assert told == {"role": "tool", "tool_call_id": call["id"], "content": TEXT}
    calls = _encoded([asked, called, told])[1]["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == {}


def test_words_are_drawn_in_a_picture_of_their_own() -> None:
    (asked,) = put_into("drawn", b"picture")
    assert [part["type"] for part in asked["content"]] == ["image", "image", "text"]
    assert TEXT not in str(asked)
    one, other = (SURROUNDINGS["drawn"].put(Question(text)).pictures()[0] for text in (TEXT, TEXT[:-4]))
    assert one.size == other.size
    assert one.tobytes() != other.tobytes()
    long = SURROUNDINGS["drawn"].put(Question(f"{TEXT} " * 30)).pictures()[0]
    assert long.height > one.height


def test_pictures_stand_in_an_earlier_turn_or_are_coarser() -> None:
    earlier, answer, asked = put_into("image-earlier", b"picture")
    assert [part["type"] for part in earlier["content"]] == ["image", "text"]
    assert answer["role"] == "assistant"
    assert asked == {"role": "user", "content": [{"type": "text", "text": TEXT}]}
    drawn = Image.effect_noise((32, 32), 80).convert("RGB")
    (coarse,) = SURROUNDINGS["jpeg-40"].put(Question(TEXT, [drawn])).pictures()
    assert coarse.size == drawn.size
    assert coarse.tobytes() != drawn.tobytes()


def test_a_row_without_pictures_is_in_no_surrounding_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two", "image": "two.png"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "two.png")
    told = "name: s\nsurroundings: [jpeg-40]\nsets: [{name: a, kind: harmful, path: rows.jsonl}]"
    (tmp_path / "s.yaml").write_text(told)
    loaded = load_rows(*load_suite(str(tmp_path / "s.yaml")))
    assert [each.row.question.text for each in loaded.asked] == ["one", "two", "two"]
    detector = Detector("guard", {each.key: 0.9 for each in loaded.asked}, frozenset())
    assert [row["flagged"][0]["n"] for row in surroundings(loaded, [], [detector], judged(*example()))] == [1, 1]


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


@pytest.mark.parametrize("words", [32, 256, 1024])
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
    words = chosen.in_surroundings("words").surroundings
    assert {*SURROUNDINGS} - {*words} == {"drawn", "image-earlier", "jpeg-40"}
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
    options += ["--suite", str(tmp_path / "s.yaml"), "--surroundings", "suffix-32,tool-text,drawn"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    names = [part["surrounding"] for part in found["surroundings"]]
    assert names == ["clean", "suffix-32", "tool-text", "drawn"]
    for part in found["surroundings"]:
        assert {cell["kind"]: cell["n"] + cell["failed"] for cell in part["flagged"]} == {"harmful": 3, "harmless": 3}
    assert {cell["n"] for cell in found["figures"]} == {3}
    headings = [heading for heading, _, _ in sections(found, brief=True)]
    assert "Surroundings, at the policy's threshold" in headings
    assert (out / "surroundings.png").stat().st_size > 1000
    assert "tool-text" in (out / "results.md").read_text()
