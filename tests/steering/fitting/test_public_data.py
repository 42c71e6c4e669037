"""Public sets as the data of a fit: found by name, and nothing of the evaluation is fitted on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from server.cli.rows import read_fit_rows
from steering.errors import FitError
from steering.fitting import public_data


def texts(kind: str, count: int) -> list[str]:
    return [f"placeholder {kind} sentence number {n}" for n in range(count)]


def write_sets(folder: Path) -> None:
    """Files with the names and shapes of the public ones, and placeholders in them."""
    for each in ("a/deep", "b", "c", "d"):
        (folder / each).mkdir(parents=True)
    pairs = [{"orig_query": a, "safe_query": b} for a, b in zip(texts("sharp", 60), texts("round", 60), strict=True)]
    (folder / "a/deep/vlsafe_convert_safe.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for name in ("harmful_train", "harmless_train", "harmful_val", "harmless_val"):
        count = 90 if name == "harmless_train" else 30
        (folder / f"b/{name}.json").write_text(json.dumps([{"instruction": text} for text in texts(name, count)]))
    with (folder / "c/xstest_half.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "type", "label", "focus", "note"])
        writer.writeheader()
        for n in range(40):
            for label in ("safe", "unsafe"):
                writer.writerow({"id": n, "prompt": f"{label} words about thing {n}", "label": label, "focus": n // 4})
    questions = {
        topic: {"inner": [f"is this {topic} placeholder {n} a question ?" for n in range(20)]}
        for topic in ("first", "second")
    }
    (folder / "d/catqa_english.json").write_text(json.dumps(questions))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_sets(tmp_path / "sets")
    arguments = ["--data", str(tmp_path / "sets"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(_app(), arguments)
    assert result.exit_code == 0, result.output
    assert "left out: condition_harmful.json, harmfulqa.json" in result.output
    return tmp_path / "out"


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(public_data.main)
    return app


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_fit_takes_the_files_as_they_are(out: Path) -> None:
    found = read_fit_rows(
        [out / "pairs.jsonl"],
        [out / "benign.jsonl"],
        [out / "hard.jsonl"],
        None,
        seed=0,
        target_fpr=0.05,
        text_only=False,
        with_test=False,
        drop_bad=False,
    )
    assert {part: bool(items) for part, items in found.parts.items()} == dict.fromkeys(
        ("train", "validation", "calibration"), True
    )
    assert {row["category"] for row in rows(out / "pairs.jsonl")} == {"vlsafe", "refusal_direction"}
    assert {item.category for items in found.parts.values() for item in items if item.hard} == {"xstest"}


def test_nothing_of_the_evaluation_is_fitted_on(out: Path) -> None:
    fitted = {text for row in rows(out / "pairs.jsonl") for text in (row["toxic"], row["safe"])}
    fitted |= {row["text"] for row in rows(out / "benign.jsonl")}
    fitted |= {row.get(side, "") for row in rows(out / "hard.jsonl") for side in ("toxic", "safe", "text")}
    suite = yaml.safe_load((out / "suite.yaml").read_text())
    held_out = {each["name"]: {row["text"] for row in rows(out / each["path"])} for each in suite["sets"]}
    assert {*held_out} == {
        *("harmful-refusal_direction", "harmless-alpaca", "harmful-xstest", "harmless-xstest", "harmful-catqa"),
    }
    assert all(held_out.values())
    assert fitted.isdisjoint(set().union(*held_out.values()))
    # Words about one thing are on one side alone.
    things = {text.rsplit(" ", 1)[1] for text in fitted if "words about" in text}
    assert things.isdisjoint(text.rsplit(" ", 1)[1] for text in held_out["harmful-xstest"])


def test_a_set_with_categories_is_a_fit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sets(tmp_path / "sets")
    monkeypatch.setattr(public_data, "HARMLESS", 20)
    found, _ = public_data.read(tmp_path / "sets", 0)
    assert public_data.write(found, tmp_path / "out", 0)["kinds"] == 40
    pairs = rows(tmp_path / "out" / "kinds.jsonl")
    assert {(row["category"], row["toxic"].split()[2]) for row in pairs} == {("first",) * 2, ("second",) * 2}
    benign = {row["text"] for row in rows(tmp_path / "out" / "benign.jsonl")}
    assert benign.isdisjoint(row["safe"] for row in pairs)
    assert {row["category"] for row in rows(tmp_path / "out" / "harmful-catqa.jsonl")} == {"first", "second"}


def test_the_same_seed_gives_the_same_files(out: Path, tmp_path: Path) -> None:
    found, _ = public_data.read(tmp_path / "sets", 0)
    public_data.write(found, tmp_path / "again", 0)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_folder_without_sets_and_a_file_that_is_another(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"holds no pairs or no harmless rows; looked for vlsafe_convert_safe\.jsonl"):
        public_data.read(tmp_path, 0)
    (tmp_path / "condition_harmful.json").write_text('{"train": [{"text": "a"}]}')
    with pytest.raises(FitError, match=r"condition_harmful\.json is not the set of that name: KeyError"):
        public_data.read(tmp_path, 0)
