"""Suites: what is wrong is named, bundled ones load, rows are the same for the same seed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from models.demo.dialogue import pairs
from steering.data import questions
from steering.errors import DataError
from steering.evaluation.suite import BUNDLED, JudgeSpec, load_rows, load_suite


def write(folder: Path, text: str) -> str:
    path = folder / "suite.yaml"
    path.write_text(text)
    return str(path)


def rows_file(folder: Path, count: int = 30) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"t{n}"}) + "\n" for n in range(count)))


GOOD = "name: s\nsets:\n  - {name: a, kind: harmful, path: rows.jsonl}\n"


@pytest.mark.parametrize("name", [path.stem for path in BUNDLED.glob("*.yaml")])
def test_bundled_suites_load_by_name(name: str) -> None:
    suite, folder = load_suite(name)
    loaded = load_rows(suite, folder, limit=2)
    assert len(loaded.asked) == 2 * len(suite.sets)
    assert not any(loaded.dropped.values())


def test_the_demo_suite_asks_what_the_docs_say() -> None:
    suite, folder = load_suite("demo")
    loaded = load_rows(suite, folder, limit=3)
    expected = {p.toxic.question for p in pairs(300, seed=2026, split="test", kinds=["cross"])}
    assert {each.row.question.text for each in loaded.asked if each.set == "harm-cross"} <= expected
    assert all(each.row.key is None for each in loaded.asked if each.kind == "harmful")
    assert all(each.row.key is not None for each in loaded.asked if each.kind != "harmful")


def test_paths_are_relative_to_the_suite_and_prompts_are_filled_in(tmp_path: Path) -> None:
    rows_file(tmp_path)
    suite, folder = load_suite(
        write(tmp_path, GOOD.replace("rows.jsonl", "rows.jsonl, prompt: 'Say: {text}', max_tokens: 9"))
    )
    asked = load_rows(suite, folder).asked
    assert (asked[0].row.question.text, asked[0].max_tokens, asked[0].key) == ("Say: t0", 9, "a/rows-1")


def test_a_limit_takes_the_same_sample_for_the_same_seed(tmp_path: Path) -> None:
    rows_file(tmp_path)
    texts = []
    for seed in (1, 1, 2):
        suite, folder = load_suite(
            write(tmp_path, f"seed: {seed}\n{GOOD}".replace("rows.jsonl", "rows.jsonl, limit: 8"))
        )
        texts.append([each.row.id for each in load_rows(suite, folder).asked])
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: s\nsets: []", "sets"),
        ("name: s", "sets"),
        ("- 1", "suite.yaml"),
        ("name: [", "no YAML"),
        (GOOD + "color: red", "color"),
        (GOOD.replace("harmful", "evil"), "kind"),
        (GOOD.replace("path: rows.jsonl", "path: rows.jsonl, format: parchment"), "unknown format 'parchment'"),
        (GOOD + "  - {name: a, kind: harmful, path: b.jsonl}", "used twice"),
        (GOOD.replace("name: a", "name: 'a/b'"), "name"),
        (GOOD + "judges: [somebody]", "judges"),
        (GOOD + "eps_sweep: [0]", "eps_sweep"),
        ("name: s\nsets:\n  - {name: a, kind: harmful, format: demo, count: 3}", "harm"),
        ("name: s\nsets:\n  - {name: a, kind: utility, format: demo, harm: text, count: 3}", "harm"),
    ],
)
def test_a_wrong_suite_is_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load_suite(write(tmp_path, text))


def test_an_absent_suite_names_those_that_are_bundled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bundled suites:.*demo"):
        load_suite(str(tmp_path / "nothing.yaml"))


def test_missing_images_stop_a_suite_unless_their_rows_may_go_and_are_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    rows = [{"text": "x", "image": name} for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite, folder = load_suite(write(tmp_path, GOOD))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no image .*b\.png, and 1 more rows; paths are .*; --drop-bad"):
        load_rows(suite, folder)
    loaded = load_rows(suite, folder, drop_bad=True)
    assert len(loaded.asked) == 1
    assert list(loaded.dropped["a"]) == ["rows.jsonl:2", "rows.jsonl:3"]


def test_a_utility_set_without_answers_and_ids_that_repeat_are_refused(tmp_path: Path) -> None:
    rows_file(tmp_path)
    suite, folder = load_suite(write(tmp_path, GOOD.replace("harmful", "utility")))
    with pytest.raises(DataError, match="needs a known answer"):
        load_rows(suite, folder)
    (tmp_path / "rows.jsonl").write_text('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n')
    suite, folder = load_suite(write(tmp_path, GOOD))
    with pytest.raises(DataError, match="'x' is used by 2 rows"):
        load_rows(suite, folder)


def test_a_suite_may_bring_its_judges(tmp_path: Path) -> None:
    judge = "judges: [phrases, {name: j, url: 'http://127.0.0.1:1/v1', model: big, images: true}]\n"
    suite, _ = load_suite(write(tmp_path, judge + GOOD))
    assert suite.judges[0] == "phrases"
    assert isinstance(suite.judges[1], JudgeSpec)
    assert suite.judges[1].images


def test_every_image_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = questions.file_digest

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(questions, "file_digest", counting)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"t{n}", "image": "a.png"}) + "\n" for n in "ab"))
    loaded = load_rows(*load_suite(write(tmp_path, GOOD + "  - {name: b, kind: harmless, path: rows.jsonl}\n")))
    assert len({loaded.digest, loaded.digest}) == 1
    assert [each.row.question.digests for each in loaded.asked]
    assert hashed == ["a.png"]
