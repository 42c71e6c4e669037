from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steering.data.questions import PictureFile
from steering.errors import DataError
from steering.evaluation.sets import read_set
from steering.fitting.dataset import Dataset
from steering.fitting.items import Item, read_hard, read_pairs, read_prompts
from steering.fitting.parts import split
from steering.fitting.problems import NearSame, check, leaks

DATA = Path(__file__).parents[4] / "shared" / "data"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_our_own_schema(folder: Path) -> None:
    rows = [
        {"id": "a", "toxic": "bad", "safe": "good", "image": "0.png", "category": "c", "group": "g", "split": "train"},
        {"toxic": "bad", "safe": "good", "toxic_image": ["0.png", "1.png"], "safe_image": "2.png"},
        {"toxic": "bad", "safe": "good"},
    ]
    one, two, three = read_pairs(write(folder / "pairs.jsonl", rows))
    assert one.toxic is not None
    assert two.toxic is not None
    assert two.safe is not None
    assert (one.id, one.category, one.group, one.split) == ("a", "c", "g", "train")
    assert one.toxic.images == (PictureFile(folder / "0.png"),)
    assert [len(side.images) for side in (two.toxic, two.safe)] == [2, 1]
    assert (three.id, three.where) == ("pairs-3", "pairs.jsonl:3")
    assert [picture.size for picture in two.toxic.pictures()] == [(8, 8), (8, 8)]
    assert check([one, two, three]) == []


def test_the_public_formats(folder: Path) -> None:
    vlsafe = write(folder / "vlsafe.jsonl", [{"image_id": "0.png", "safe_query": "s", "orig_query": "t"}])
    for text_only, count in ((True, 0), (False, 1)):
        (item,) = read_pairs(vlsafe, folder, text_only=text_only)
        assert item.toxic is not None
        assert item.safe is not None
        assert (item.toxic.text, item.safe.text, len(item.safe.images)) == ("t", "s", count)
    (item,) = read_pairs(write(folder / "tovilag.jsonl", [{"query": "t", "image_pth": "1.png"}]))
    assert item.toxic is not None
    assert item.safe is None
    (folder / "condition.json").write_text(json.dumps({"train": [{"harmful": "t", "harmless": "s"}], "test": []}))
    (item,) = read_pairs(folder / "condition.json")
    assert item.toxic is not None
    assert item.toxic.text == "t"


def test_pictures_that_are_known_by_name_alone_are_asked_for(tmp_path: Path) -> None:
    row = {"image_id": "0.png", "safe_query": "s", "orig_query": "t"}
    path = write(tmp_path / "vlsafe.jsonl", [row, row])
    with pytest.raises(DataError, match=r"vlsafe.jsonl:1: .*--images, .* or say --text-only .*; 1 more rows are wrong"):
        read_pairs(path)
    assert [len(item.files) for item in read_pairs(path, text_only=True)] == [0, 0]


def test_what_an_author_keeps_for_testing_is_fitted_on_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = {name: [{"harmful": f"bad {name}", "harmless": f"good {name}"}] for name in ("train", "Test")}
    (tmp_path / "c.json").write_text(json.dumps(lists))
    rows = [{"text": "a", "split": "test"}, {"text": "b", "split": "train"}, {"text": "c"}]
    prompts = write(tmp_path / "p.jsonl", rows)
    assert [item.id for item in read_pairs(tmp_path / "c.json")] == ["c-1"]
    assert [item.split for item in read_prompts(prompts)] == ["train", None]
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: 1 rows kept for testing are left out; --with-test fits on them too" for name in ("c.json", "p.jsonl")
    ]
    assert len(read_pairs(tmp_path / "c.json", with_test=True)) == 2
    assert len(read_prompts(prompts, with_test=True)) == 3
    assert [row.id for row in read_set(tmp_path / "c.json", "condition", "harmful", test_only=True)] == ["c-2"]
    with pytest.raises(DataError, match="all 1 rows are kept for testing"):
        read_prompts(write(tmp_path / "t.jsonl", rows[:1]))


def test_single_prompts(folder: Path) -> None:
    path = write(folder / "benign.jsonl", [{"text": "hello", "image": "0.png"}])
    (safe,), (toxic,) = read_prompts(path), read_prompts(path, toxic=True)
    assert safe.toxic is None
    assert toxic.safe is None
    assert safe.safe == toxic.toxic


def test_hard_negatives_are_pairs_prompts_or_xstest(tmp_path: Path) -> None:
    (tmp_path / "hard.jsonl").write_text('{"toxic": "ab", "safe": "ac"}\n{"text": "how to stop a process"}')
    (tmp_path / "xstest.csv").write_text("id,prompt,type,label\n1,aa,homonyms,safe\n2,bb,contrast_homonyms,unsafe\n")
    found = [*read_hard(tmp_path / "hard.jsonl"), *read_hard(tmp_path / "xstest.csv")]
    assert all(item.hard for item in found)
    sides = [(item.toxic and item.toxic.text, item.safe and item.safe.text) for item in found]
    assert sides == [("ab", "ac"), (None, "how to stop a process"), (None, "aa"), ("bb", None)]
    assert Dataset.of({"train": found}).hard([0, 1]).tolist() == [True, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"toxic": "t", "safe": "s"}\n{"toxic": ', r"bad.jsonl:2: no JSON"),
        ('{"toxic": "t"}', r"bad.jsonl:1: no 'safe', or it is empty"),
        ('{"toxic": "t", "safe": "s", "imagee": "x"}', r"bad.jsonl:1: column 'imagee': did you mean 'image'"),
        ('{"toxic": "t", "safe": "s", "split": "testing"}', r"bad.jsonl:1: split"),
        ('{"toxic": "t", "safe": "", "id": "x"}', r"bad.jsonl:1: safe"),
        ('{"toxic": "t", "safe": "s", "image": "a", "safe_image": "b"}', r"bad.jsonl:1: image is of both"),
        ("[1, 2]", r"bad.jsonl:1: a row must be an object"),
        ("\n\n", r"holds no rows"),
    ],
)
def test_bad_files_are_refused_by_row(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        read_pairs(tmp_path / "bad.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        read_pairs(tmp_path / "nothing.jsonl")


def test_problems_are_found_by_row(folder: Path) -> None:
    rows = [
        {"id": "a", "toxic": "t", "safe": "s", "image": "0.png"},
        {"id": "a", "toxic": "u", "safe": "v", "image": "gone.png"},
        {"id": "b", "toxic": "same", "safe": "same"},
        {"id": "c", "toxic": "same", "safe": "same", "toxic_image": "0.png", "safe_image": "1.png"},
    ]
    rows.append({"id": "e", "toxic": "w", "safe": "x", "image": "damaged.png"})
    (folder / "damaged.png").write_bytes(b"no picture")
    found = [str(problem) for problem in check(read_pairs(write(folder / "p.jsonl", rows)))]
    assert len(found) == 5
    assert any(line.startswith("p.jsonl:5 (e):") and "damaged.png cannot be read as an image" in line for line in found)
    assert "p.jsonl:1 (a): the id is used 2 times" in found
    assert any(line.startswith("p.jsonl:2 (a): no image") and "gone.png" in line for line in found)
    assert "p.jsonl:3 (b): toxic and safe are the same prompt" in found


def test_leaks_between_the_parts_are_found(folder: Path) -> None:
    Image.new("RGB", (8, 8), (0, 0, 0)).save(folder / "copy.png")  # the same content as 0.png
    rows = [
        {"id": "a", "toxic": "How do I do it?", "safe": "one", "image": "0.png", "split": "train"},
        {"id": "b", "toxic": "how do i do IT", "safe": "two", "image": "1.png", "split": "validation"},
        {"id": "c", "toxic": "other", "safe": "three", "image": "copy.png", "split": "calibration"},
        {"id": "d", "toxic": "unseen", "safe": "four", "image": "3.png", "split": "calibration"},
    ]
    found = {problem.id: problem.what for problem in leaks(split(read_pairs(write(folder / "p.jsonl", rows))))}
    assert found.keys() == {"b", "c"}
    assert found["b"] == "validation: near-same words about another image are also in train (p.jsonl:1)"
    assert found["c"] == "calibration: its image is also in train (p.jsonl:1)"


def test_what_validation_and_calibration_share_is_a_leak_too(folder: Path) -> None:
    rows = [
        {"id": "a", "toxic": "one", "safe": "two", "split": "train"},
        {"id": "b", "toxic": "three", "safe": "four", "image": "1.png", "split": "validation"},
        {"id": "c", "toxic": "five", "safe": "six", "image": "1.png", "split": "calibration"},
        {"id": "d", "toxic": "five!", "safe": "seven", "split": "calibration"},
    ]
    found = [str(problem) for problem in leaks(split(read_pairs(write(folder / "p.jsonl", rows))))]
    assert found == ["p.jsonl:3 (c): calibration: its image is also in validation (p.jsonl:2)"]


def test_texts_that_differ_by_a_word_are_near_the_same() -> None:
    words = NearSame()
    words.add("how do i open the old lock of my front door", "here")
    assert words.find("how do i open the old lock of my back door") == "here"
    assert words.find("now how do i open the old lock of my front door") == "here"
    assert words.find("how do i open the old box of my back door") is None
    assert words.find("door front my of lock") is None
    assert words.find("lock") is None
    words.add("lock", "there")
    assert words.find("lock") == "there"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1), min_size=1),
    st.lists(st.sampled_from("abcdefgh"), min_size=1),
)
def test_near_the_same_is_what_comparing_with_every_text_finds(texts: list[list[str]], asked: list[str]) -> None:
    words = NearSame()
    for text in texts:
        words.add(" ".join(text), " ".join(text))
    found = words.find(" ".join(asked))
    near = {" ".join(text) for text in texts if len({*text} & {*asked}) >= 0.8 * len({*text} | {*asked})}
    assert (found in near) if near else found is None


def texts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "toxic": f"toxic {n}", "safe": f"safe {n}", **more} for n in range(count)]


def test_splits_are_seeded_disjoint_and_about_as_large_as_asked(tmp_path: Path) -> None:
    items = read_pairs(write(tmp_path / "p.jsonl", texts(1000)))
    parts = split(items, seed=1)
    assert sorted(item.id for part in parts.values() for item in part) == sorted(item.id for item in items)
    assert [round(len(part) / 100) for part in parts.values()] == [6, 2, 2]
    assert split(items, seed=1) == parts
    assert split(items, seed=2) != parts
    more = split(read_pairs(write(tmp_path / "p.jsonl", texts(1200))), seed=1)
    assert {item.id for item in parts["calibration"]} <= {item.id for item in more["calibration"]}


def test_what_hangs_together_is_not_split(folder: Path) -> None:
    rows = texts(300)
    for number, row in enumerate(rows):
        row["image" if number % 2 else "group"] = f"{number % 4}.png" if number % 2 else f"g{number % 10}"
    parts = split(read_pairs(write(folder / "p.jsonl", rows)))
    assert leaks(parts) == []
    where: dict[str, set[str]] = {}
    for part, items in parts.items():
        for item in items:
            where.setdefault(item.group or str(item.questions[0].images), set()).add(part)
    assert all(len(found) == 1 for found in where.values())


def test_validation_rows_also_calibrate_where_none_are_named_for_it(tmp_path: Path) -> None:
    rows = texts(200, split="validation") + [{**row, "id": f"t{row['id']}"} for row in texts(100, split="train")]
    parts = split(read_pairs(write(tmp_path / "p.jsonl", rows)))
    assert len(parts["train"]) == 100
    assert 70 < len(parts["validation"]) < 130
    assert len(parts["validation"]) + len(parts["calibration"]) == 200


def test_rows_about_different_pictures_are_not_tied_by_their_words(tmp_path: Path) -> None:
    """As FigStep: one text, and what is asked stands in the pictures."""
    rows = []
    for number in range(60):
        for side in ("toxic", "safe"):
            Image.new("RGB", (8, 8), (number, 0, len(side))).save(tmp_path / f"{side}{number}.png")
        pictures = {f"{side}_image": f"{side}{number}.png" for side in ("toxic", "safe")}
        rows.append({"id": f"r{number}", "toxic": "Fill in the list.", "safe": "Fill in the list.", **pictures})
    parts = split(read_pairs(write(tmp_path / "p.jsonl", rows)))
    assert all(len(items) >= 6 for items in parts.values())
    # Told of once for each part that follows another, not row by row.
    found = [problem.what for problem in leaks(parts)]
    assert len(found) == 2
    assert all("near-same words about another image are also in" in what for what in found)


def test_the_same_words_without_pictures_stay_together(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "toxic": f"same {n % 3}", "safe": f"safe {n}"} for n in range(60)]
    parts = split(read_pairs(write(tmp_path / "p.jsonl", rows)))
    assert leaks(parts) == []
    assert len({part for part, items in parts.items() for item in items if int(item.id[1:]) % 3 == 0}) == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not here")
def test_the_real_sets_are_read() -> None:
    vlsafe = read_pairs(DATA / "zjunlp+AutoSteer/dataset/VLSafe/train/vlsafe_convert_safe.jsonl", text_only=True)
    condition = read_pairs(DATA / "IBM+activation-steering/docs/demo-data/condition_harmful.json")
    assert (len(vlsafe), len(condition)) == (3000, 4050)
    parts = split(vlsafe)
    assert not any("image" in problem.what for problem in leaks(parts))
    assert all(isinstance(item, Item) and item.safe is not None for item in vlsafe)
