"""Every format that is read: ours, and the shapes of public sets. The texts are made up and harmless."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from server.media.files import decode_image
from steering.data.formats import FIGSTEP_TEXT, FORMATS
from steering.data.questions import PictureFile
from steering.errors import DataError
from steering.evaluation.answers import Key
from steering.evaluation.sets import problems, read_set
from steering.fitting.items import read_pairs, read_prompts

SHARED = Path(__file__).parents[4] / "shared" / "data"


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def picture(folder: Path, name: str) -> None:
    (folder / name).write_bytes(png())


def jsonl(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, *rows: Mapping[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_our_own_rows(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    rows = read_set(
        jsonl(
            tmp_path / "x.jsonl",
            {"text": "one"},
            {"id": "b", "text": "two", "image": "a.png", "category": "c", "answer": ["red", "crimson"]},
            {"text": "three", "image": ["a.png", "a.png"], "modality": "cross", "choices": ["p", "q"], "answer": "B"},
        ),
        "rows",
        "utility",
    )
    assert [row.id for row in rows] == ["x-1", "b", "x-3"]
    assert [row.modality for row in rows] == ["text", "image", "cross"]
    assert [len(row.question.pictures()) for row in rows] == [0, 1, 2]
    assert rows[0].key is None
    assert rows[1].key is not None
    assert rows[1].key.accepted == ("red", "crimson")
    assert rows[2].key is not None
    assert rows[2].key.style == "choice"
    assert "A. p\nB. q" in rows[2].question.text
    assert not problems(rows)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": ""}, r"x\.jsonl:1: text"),
        ({"text": "t", "imge": "a.png"}, "imge"),
        ({"text": "t", "choices": ["a", "b"]}, "choices need an answer"),
        ({"text": "t", "choices": ["a", "b"], "answer": "C"}, "not a letter"),
        ({"prompt": "t"}, "text"),
        (["t"], "must be an object"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_set(jsonl(tmp_path / "x.jsonl", row), "rows", "harmful")


def test_vlsafe_and_its_twins(tmp_path: Path) -> None:
    picture(tmp_path, "1.jpg")
    path = jsonl(
        tmp_path / "v.jsonl",
        {"image_id": "1.jpg", "safe_query": "safe", "orig_query": "toxic"},
        {"image_id": "1.jpg", "caption": "c", "query": "toxic 2", "safe_query": "safe 2", "reference": "r"},
        {"image_id": "1.jpg", "caption": "c", "query": "toxic 3", "reference": "r"},
    )
    assert [row.question.text for row in read_set(path, "vlsafe", "harmful", tmp_path)] == [
        "toxic",
        "toxic 2",
        "toxic 3",
    ]
    safe = read_set(path, "vlsafe", "harmless", tmp_path)
    assert [(row.question.text, len(row.question.images)) for row in safe] == [("safe", 1), ("safe 2", 1)]


def test_tovilag(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"query": "q", "image_pth": "x/1.png"}, {"query": "text alone"})
    rows = read_set(path, "tovilag", "harmful", tmp_path / "pictures")
    assert rows[0].question.images == (PictureFile(tmp_path / "pictures" / "x" / "1.png"),)
    assert [row.modality for row in rows] == ["image", "text"]
    assert "no image" in problems(rows)["t.jsonl:1"]


def test_figstep(tmp_path: Path) -> None:
    fields = {"dataset": "ForbidQI", "category_id": "3", "task_id": "2", "category_name": "C", "question": "q"}
    picture(tmp_path, "query_ForbidQI_3_2_6.png")
    (row,) = read_set(table(tmp_path / "f.csv", {**fields, "instruction": "i"}), "figstep", "harmful", tmp_path)
    assert (row.question.text, row.category, row.modality) == (FIGSTEP_TEXT, "C", "typographic")
    assert not problems([row])


def test_xstest_gives_each_kind_its_rows(tmp_path: Path) -> None:
    rows = [("1", "homonyms", "safe"), ("2", "contrast_homonyms", "unsafe"), ("3", "safe_targets", "safe")]
    labelled = [{"id": n, "prompt": f"p{n}", "type": t, "label": label} for n, t, label in rows]
    unlabelled = [{name: value for name, value in row.items() if name != "label"} for row in labelled]
    for given in (labelled, unlabelled):
        path = table(tmp_path / "x.csv", *given)
        assert [row.id for row in read_set(path, "xstest", "harmless")] == ["xstest-1", "xstest-3"]
        assert [row.id for row in read_set(path, "xstest", "harmful")] == ["xstest-2"]


def test_harmbench(tmp_path: Path) -> None:
    fields = {
        "Behavior": "b",
        "SemanticCategory": "s",
        "ContextString": "c",
        "BehaviorID": "1",
        "ImageFileName": "i.png",
    }
    rows = read_set(
        table(tmp_path / "h.csv", fields, {**fields, "BehaviorID": "2", "ContextString": "", "ImageFileName": ""}),
        "harmbench",
        "harmful",
        tmp_path,
    )
    assert [row.question.text for row in rows] == ["c\n\nb", "b"]
    assert [len(row.question.images) for row in rows] == [1, 0]


def test_mossbench_as_an_object_by_id_and_as_a_list(tmp_path: Path) -> None:
    row = {"image": "images/1.png", "question": "q", "metadata": {"over": "Negated Harm"}, "pid": "1"}
    for data in ({"1": row}, [row]):
        path = tmp_path / "m.json"
        path.write_text(json.dumps(data))
        (found,) = read_set(path, "mossbench", "harmless")
        assert (found.category, found.question.images) == ("Negated Harm", (PictureFile(tmp_path / "images/1.png"),))


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def test_mmmu_parquet_with_its_images_inside(tmp_path: Path) -> None:
    image = {"bytes": png("blue"), "path": "a.png"}
    base = {"subfield": "Optics", "image_1": image, "image_2": image}
    choice = {"id": "a", "question": "See <image 1>", "options": "['x <image 2>', 'y']", "answer": "B", **base}
    opened = {**base, "id": "b", "question": "How much?", "options": "[]", "answer": "['4', 'four']", "image_2": None}
    rows = read_set(parquet(tmp_path / "mmmu.parquet", [choice, opened]), "mmmu", "utility")
    assert [len(row.question.pictures()) for row in rows] == [2, 1]
    assert rows[0].question.pictures()[0].getpixel((0, 0)) == (0, 0, 255)
    assert rows[0].question.text.startswith("See [image 1]\nA. x [image 2]\nB. y\n")
    assert rows[0].key is not None
    assert rows[0].key.accepted == ("B",)
    assert rows[1].key is not None
    assert rows[1].key.accepted == ("4", "four")
    assert not problems(rows)


def test_realworldqa_parquet_and_jsonl(tmp_path: Path) -> None:
    (inside,) = read_set(
        parquet(tmp_path / "r.parquet", [{"image": {"bytes": png(), "path": None}, "question": "q", "answer": "A"}]),
        "realworldqa",
        "utility",
    )
    picture(tmp_path, "r.png")
    (beside,) = read_set(
        jsonl(tmp_path / "r.jsonl", {"image": "r.png", "question": "q", "answer": "A"}), "realworldqa", "utility"
    )
    for row in (inside, beside):
        assert not problems([row])
        assert row.key is not None


def test_images_that_are_missing_or_damaged_are_named_by_row(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png()[:40])
    picture(tmp_path, "good.png")
    images = ["good.png", "broken.png", "absent.png"]
    rows = read_set(jsonl(tmp_path / "x.jsonl", *({"text": "t", "image": i} for i in images)), "rows", "harmful")
    found = problems(rows)
    assert list(found) == ["x.jsonl:2", "x.jsonl:3"]
    assert "cannot be read" in found["x.jsonl:2"]
    assert "absent.png" in found["x.jsonl:3"]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"rows"}))
def test_a_row_of_another_shape_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"x\.jsonl:1"):
        read_set(jsonl(tmp_path / "x.jsonl", {"something": "else"}), name, "utility")


def test_an_empty_file_a_torn_line_and_a_ragged_table_are_errors(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n\n")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": ')
    (tmp_path / "r.csv").write_text("id,prompt,type\n1,a,b,c\n")
    (tmp_path / "p.parquet").write_text("no parquet")
    for name, says in (("e.jsonl", "no rows"), ("t.jsonl", "t.jsonl:2"), ("r.csv", "r.csv:2"), ("p.parquet", "cannot")):
        with pytest.raises(DataError, match=says):
            read_set(tmp_path / name, "rows", "harmful")


def test_empty_cells_empty_lines_and_row_numbers_of_a_table_say_nothing(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    path = tmp_path / "x.csv"
    for head, first in (("", ""), (",", "0,"), ("Unnamed: 0,", "0,")):
        empty = "," * (2 + head.count(","))
        path.write_text(f"\ufeff{head}id,text,image\n{first}1,one,\n{first}2,two,a.png\n{empty}\n", encoding="utf-8")
        rows = read_set(path, "rows", "harmful")
        assert [(row.id, row.modality) for row in rows] == [("1", "text"), ("2", "image")]
        assert not problems(rows)


def test_numbers_as_ids_and_answers_and_a_byte_order_mark(tmp_path: Path) -> None:
    row = {"id": 7, "text": "2 + 2", "answer": 4, "category": 3, "image": None}
    for name, text in (("x.jsonl", json.dumps(row)), ("x.json", json.dumps([row]))):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        (found,) = read_set(tmp_path / name, "rows", "utility")
        assert (found.id, found.category, found.key) == ("7", "3", Key(("4",)))


def test_images_in_a_parquet_file_are_read_in_our_own_rows_too(tmp_path: Path) -> None:
    picture(tmp_path, "beside.png")
    inside = {"id": 1, "text": "t", "image": {"bytes": png("blue"), "path": "a.png"}}
    beside = {"id": 2, "text": "t", "image": {"bytes": None, "path": "beside.png"}}
    rows = read_set(parquet(tmp_path / "x.parquet", [inside, beside]), "rows", "harmful")
    assert [row.question.pictures()[0].getpixel((0, 0)) for row in rows] == [(0, 0, 255), (255, 0, 0)]
    (prompt, _) = read_prompts(tmp_path / "x.parquet")
    assert prompt.safe == rows[0].question


def test_fitting_and_evaluation_read_the_same_prompts(tmp_path: Path) -> None:
    vlsafe = jsonl(tmp_path / "v.jsonl", {"image_id": "1.jpg", "safe_query": "safe", "orig_query": "toxic"})
    pairs = jsonl(tmp_path / "p.jsonl", {"toxic": "bad", "safe": "good", "image": "1.jpg"})
    for path, name in ((vlsafe, "vlsafe"), (pairs, "pairs")):
        (item,) = read_pairs(path, tmp_path)
        assert [item.toxic] == [row.question for row in read_set(path, name, "harmful", tmp_path)]
        assert [item.safe] == [row.question for row in read_set(path, name, "harmless", tmp_path)]


def test_a_digest_changes_with_whatever_an_answer_depends_on(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(png("green"))
    variants = [{"text": "t"}, {"text": "u"}, {"text": "t", "image": "a.png"}, {"text": "t", "image": "b.png"}]
    digests = {read_set(jsonl(tmp_path / "x.jsonl", row), "rows", "harmful")[0].digest() for row in variants}
    assert len(digests) == len(variants)


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
def test_the_real_files_are_read_whole() -> None:
    figstep = SHARED / "ThuCCSLab+FigStep" / "data"
    rows = read_set(
        figstep / "question" / "SafeBench-Tiny.csv", "figstep", "harmful", figstep / "images" / "SafeBench-Tiny"
    )
    assert len(rows) == 50
    assert not problems(rows)
    vlsafe = SHARED / "zjunlp+AutoSteer/dataset/VLSafe/train/VLSafe_harmlessnss_alignment.jsonl"
    assert len(read_set(vlsafe, "vlsafe", "harmful", text_only=True)) == 3000


def test_an_image_is_seen_as_a_server_sees_it(tmp_path: Path) -> None:
    """Turned as its EXIF data says, with transparency on white: what a guard is fitted on is what it is served."""
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    path = jsonl(tmp_path / "x.jsonl", {"text": "t", "image": ["turned.jpg", "clear.png"]})
    (row,) = read_set(path, "rows", "harmful")
    first, second = row.question.pictures()
    assert first.size == (2, 4)
    assert second.getpixel((0, 0)) == (255, 255, 255)
    served = [decode_image((tmp_path / name).read_bytes(), 100) for name in ("turned.jpg", "clear.png")]
    assert [image.tobytes() for image in served] == [image.tobytes() for image in (first, second)]
