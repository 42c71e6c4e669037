"""Files as people save them: read where the meaning is clear, else one line with the column, the row and the fix."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from steering.data.questions import PictureFile
from steering.errors import DataError
from steering.fitting.items import Item, read_pairs, read_prompts

ROW = {"toxic": "Wie öffne ich das Schloß?", "safe": "Wie schließe ich ab?"}
HEAD = "toxic,safe\n"


def fields(item: Item) -> dict[str, str]:
    assert item.toxic is not None
    assert item.safe is not None
    return {"toxic": item.toxic.text, "safe": item.safe.text}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_as_excel_saves_it(tmp_path: Path, encoding: str, delimiter: str) -> None:
    lines = [delimiter.join(names) for names in (ROW, ROW.values())]
    (tmp_path / "x.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    (item,) = read_pairs(tmp_path / "x.csv")
    assert (fields(item), item.where) == (ROW, "x.csv:2")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_lines_of_json_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    line = json.dumps(ROW, ensure_ascii=False)
    (tmp_path / "x.jsonl").write_bytes(f"{line}\r\n{line}\r\n".encode(encoding))
    assert [fields(item) for item in read_pairs(tmp_path / "x.jsonl")] == [ROW, ROW]


def test_byte_order_marks_where_files_were_joined(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes((json.dumps(ROW) + "\n").encode("utf-8-sig") * 2)
    assert len(read_pairs(tmp_path / "x.jsonl")) == 2


def test_windows_1252_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.csv").write_bytes(f"toxic,safe\n{ROW['toxic']},b\n".encode("cp1252"))
    with caplog.at_level(logging.WARNING):
        read_pairs(tmp_path / "x.csv")
    assert "x.csv is not UTF-8; it is read as Windows-1252" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "sep=;\ntoxic;safe\na;b\n"),
        ("x.csv", "Toxic,SAFE,\na,b,\n"),
        ("x.csv", " toxic , safe \na,b,,\n"),
        ("x.tsv", "toxic\tsafe\na\tb\n"),
        ("x.csv", 'toxic,safe,id\na,b\n,,"  "\n'),
        ("x.jsonl", '[{"toxic": "a", "safe": "b"}]'),
        ("x.json", '{"toxic": "a", "safe": "b"}\n'.strip() + "\n" + '{"toxic": "a", "safe": "b"}'),
    ],
)
def test_what_is_clear_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert {tuple(fields(item).values()) for item in read_pairs(tmp_path / name)} == {("a", "b")}


def test_columns_that_nobody_reads_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.csv").write_text("toxic,safe,source,remark\na,b,web,fine\nc,d,web,\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_pairs(tmp_path / "x.csv")) == 2
    (record,) = caplog.records
    assert record.getMessage() == "x.csv: columns that are not read: source, remark"


def test_paths_of_windows_are_read_as_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    rows = [{"text": "t", "image": name} for name in ("pictures\\1.png", "C:\\Users\\me\\pictures\\1.png")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wanted = PictureFile(tmp_path / "pictures" / "1.png")
    first, second = read_prompts(tmp_path / "x.jsonl")
    assert first.files == [wanted]
    assert second.files == [PictureFile(tmp_path / "1.png")]
    assert read_prompts(tmp_path / "x.jsonl", tmp_path / "pictures")[1].files == [wanted]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv", "toxic,safe\nö,b\n".encode() + "é,ü\n".encode("latin-1"), "x.csv:3: not UTF-8, while lines before"),
        ("x.csv", HEAD.encode() + "Привет как дела,мир\n".encode("cp1251"), "x.csv:2: neither UTF-8 nor .*save it as"),
        ("x.csv", b"PK\x03\x04....", "Excel workbook .* save the sheet as CSV UTF-8"),
        ("x.jsonl", b"\x1f\x8b....", "is compressed: unpack it"),
        ("x.csv", b"PAR1....", "ending .parquet"),
        ("x.csv", b"\xff\xfea", "is damaged: it begins as utf-16"),
        ("x.csv", b"toxic,safe,toxic\na,b,c\n", "x.csv:1: two columns are named toxic"),
        ("x.csv", b"toxic,safe\na,b,c\n", "x.csv:2: 3 cells under 2 columns; put quotes around a text that holds a c"),
        ("x.csv", b'toxic,safe\n"a,b\n', "x.csv:2: .*is a quote left open"),
        ("x.csv", b"toxic,safe\na,\n", "x.csv:2: no 'safe', or it is empty; the row has {toxic}"),
        ("x.csv", b"harmful,benign\na,b\n", "x.csv:2: no 'harmless', but 'benign': did you mean 'harmless'"),
        ("x.csv", b"toxic,sfae\na,b\n", "x.csv:2: no 'safe', but 'sfae': did you mean 'safe'"),
        ("x.csv", b"toxic,safe,picture\na,b,1.png\n", "'picture': did you mean 'image'"),
        ("x.csv", b"toxic,safe,shown\na,b,1.png\n", "'shown': did you mean 'image'"),
        ("x.csv", b"toxic,safe,split\na,b,trian\n", "split is 'trian', and must be .*did you mean 'train'"),
        ("x.csv", b"toxic,safe,split\na,b,x\na,b,x\na,b,x\n", "x.csv:2: split is 'x'.*; 2 more rows are wrong"),
        ("x.csv", b"a sentence\nanother one\n", "the first line names the columns"),
        ("x.jsonl", b"toxic,safe\na,b\n", "x.jsonl:1: no JSON: .*has the ending .csv"),
        ("x.jsonl", b'{"toxic": 1, "safe": "b"}', "x.jsonl:1: toxic must be text, not 1"),
        ("x.jsonl", b'{"toxic": "a", "safe": "b", "image": 3}', "image must be a path, or a list of at most 16, not 3"),
        ("x.json", b'{"a": 1}', "neither a list of rows"),
        ("x.csv", b"", "holds no rows"),
    ],
)
def test_what_is_not_clear_is_one_line_with_the_fix(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        read_pairs(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: give a file of rows"):
        read_pairs(tmp_path)
