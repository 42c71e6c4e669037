"""Wrong tables, folders and configs: one line that names what is wrong and how to mend it, before torch is needed.

Each within two seconds of the processor; that no command imports torch for it is tested beside this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from time import process_time

import pytest
from PIL import Image
from typer.testing import CliRunner

from server.cli.evaluate import app as evaluation
from server.cli.fit import app as fitting
from server.cli.main import app as main
from tests.server.settings.test_sources import WRONG

PAIR = {"toxic": "Break it.", "safe": "Mend it."}
# Name and content of a file of pairs, and what is said of it: where it stands, and the way to mend it.
TABLES: list[tuple[str, bytes, str, str]] = [
    ("p.csv", b"Toxic;Saef\na;b\n", "p.csv:2", "did you mean 'safe'"),
    ("p.csv", b"toxic,safe,imagee\na,b,1.png\n", "p.csv:2", "did you mean 'image'"),
    ("p.csv", b"toxic,safe,foto\na,b,1.png\n", "p.csv:2", "did you mean 'image'"),
    ("p.csv", b"toxic,safe,catgory\na,b,c\n", "p.csv:2", "did you mean 'category'"),
    ("p.csv", b"toxic,benign\na,b\n", "p.csv:2", "did you mean 'safe'"),
    ("p.csv", b"prompt,answer\na,b\n", "p.csv:2", "the first line names the columns"),
    ("p.csv", b"How do I do it?,How do I not?\na,b\n", "p.csv:2", "the first line names the columns"),
    ("p.csv", b"toxic,safe\na,\n", "p.csv:2", "no 'safe', or it is empty"),
    ("p.csv", b"toxic,safe\n,b\na,b\n", "p.csv:2", "no 'toxic', or it is empty"),
    ("p.csv", b"toxic,safe\na, b, c\n", "p.csv:2", "put quotes around a text that holds a comma"),
    ("p.csv", b"toxic;safe\na;b;c\n", "p.csv:2", "put quotes around a text that holds a semicolon"),
    ("p.csv", b'toxic,safe\n"a,b\n', "p.csv:2", "is a quote left open?"),
    ("p.csv", b"toxic,toxic\na,b\n", "p.csv:1", "rename or remove one of them"),
    ("p.csv", b"toxic,safe,split\na,b,testing\n", "p.csv:2", "must be train or validation or calibration or test"),
    ("p.csv", b"toxic,safe,split\na,b,valid\n", "p.csv:2", "did you mean 'validation'"),
    ("p.csv", b"toxic,safe,image,safe_image\na,b,1.png,2.png\n", "p.csv:2", "either it or toxic_image and safe_image"),
    ("p.csv", "toxic,safe\nда,нет\n".encode("cp1251"), "p.csv:2", "save it as UTF-8"),
    ("p.csv", "toxic,safe\nä,ö\n".encode() + b"\xe4,\xf6\n", "p.csv:3", "save it as UTF-8"),
    ("p.csv", b"", "p.csv", "holds no rows"),
    ("p.csv", b"toxic,safe\n", "p.csv", "holds no rows"),
    ("p.xlsx", b"PK\x03\x04\x14\x00", "p.xlsx", "save the sheet as CSV UTF-8"),
    ("p.xls", b"\xd0\xcf\x11\xe0\xa1\xb1", "p.xls", "save the sheet as CSV UTF-8"),
    ("p.jsonl.gz", b"\x1f\x8b\x08\x00", "p.jsonl.gz", "unpack it"),
    ("p.jsonl", b"PAR1\x15\x04", "p.jsonl", "give it the ending .parquet"),
    ("p.parquet", b'{"toxic": "a", "safe": "b"}', "p.parquet", "cannot read"),
    ("p.jsonl", b"toxic,safe\na,b\n", "p.jsonl:1", "has the ending .csv"),
    ("p.jsonl", b'{"toxic": "a", "safe": ', "p.jsonl:1", "no JSON"),
    ("p.jsonl", b"{'toxic': 'a', 'safe': 'b'}", "p.jsonl:1", "no JSON"),
    ("p.jsonl", b'["a", "b"]', "p.jsonl:1", "a row must be an object"),
    ("p.jsonl", b'{"toxic": ["a"], "safe": "b"}', "p.jsonl:1", "toxic must be text"),
    ("p.jsonl", b'{"toxic": "a", "safe": "b", "image": {"url": "x"}}', "p.jsonl:1", "an image must be a path"),
    ("p.jsonl", b'{"toxic": "", "safe": "b"}', "p.jsonl:1", "is empty: write the text"),
    ("p.json", b'{"version": 1}', "p.json", "neither a list of rows"),
    ("p.json", b'{"test": [{"toxic": "a", "safe": "b"}]}', "p.json", "--with-test fits on them"),
    ("p.jsonl", b'{"orig_query": "a", "safe_query": "b", "image_id": "1"}', "p.jsonl:1", "--text-only"),
    (
        "p.jsonl",
        b'{"toxic": "a", "safe": "b", "image": "pics\\\\1.png"}',
        "1 problems",
        "relative to their file, or to --i",
    ),
    ("p.jsonl", b'{"toxic": "a", "safe": "b", "image": "p.jsonl"}', "1 problems", "as PNG or JPEG"),
    ("p.jsonl", b'{"toxic": "a", "safe": "a"}', "1 problems", "twins must differ"),
    ("p.jsonl", b'{"id": 1, "toxic": "a", "safe": "b"}\n' * 60, "60 problems", "give each row an id of its own"),
    ("p.jsonl", b'{"toxic": "a", "safe": "b"}\n', "the validation part has", "toxic prompts in all would give"),
    ("p.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "p.jsonl", "git lfs pull"),
]


def one_line(result: object, *says: str) -> None:
    """The command ended with one line that says this, no traceback, code 2."""
    assert isinstance(getattr(result, "exception", None), SystemExit)
    assert getattr(result, "exit_code", None) == 2
    line = str(getattr(result, "stderr", "")).strip().splitlines()[-1]
    assert line.startswith("autosteer: ")
    for each in says:
        assert each in line


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """What is wrong is told within two seconds."""
    begun = process_time()
    yield
    assert process_time() - begun <= 2


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_config_is_one_line_with_the_fix(tmp_path: Path, text: str) -> None:
    (tmp_path / "autosteer.yaml").write_text(text)
    result = CliRunner().invoke(main, ["config", "check", str(tmp_path / "autosteer.yaml")])
    one_line(result, *WRONG[text])
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


@pytest.mark.parametrize("kind", [TABLES, WRONG], ids=["tables", "configs"])
def test_thirty_of_each_kind_are_tried(kind: Collection[object]) -> None:
    assert len(kind) >= 30


@pytest.mark.parametrize(("name", "data", "where", "fix"), TABLES)
def test_a_wrong_table_is_one_line_with_the_fix(tmp_path: Path, name: str, data: bytes, where: str, fix: str) -> None:
    (tmp_path / name).write_bytes(data)
    # The model is not there: what is wrong with the rows is told before anybody looks for it.
    command = ["fit", "--model", "no/model", "--pairs", str(tmp_path / name), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(fitting, command)
    one_line(result, where, fix)
    assert len(result.stderr.splitlines()) <= 13  # of many problems the first are shown
    assert {path.name for path in tmp_path.iterdir()} == {name}


def data(folder: Path) -> Path:
    """A file of enough pairs."""
    rows = [{**PAIR, "id": str(n), "toxic": f"Break {n}.", "safe": f"Mend {n}."} for n in range(300)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "p.jsonl"


def a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


def an_empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def below_a_file(folder: Path) -> str:
    return a_file(folder) + "/below"


def nowhere(folder: Path) -> str:
    return str(folder / "nowhere")


def read_only(folder: Path) -> str:
    (folder / "locked").mkdir(mode=0o500)
    return str(folder / "locked")


def a_torn_bundle(folder: Path) -> str:
    (folder / "bundle").mkdir()
    (folder / "bundle" / "guard.json").write_text('{"format": ')
    return str(folder / "bundle")


def a_run_of_nothing(folder: Path) -> str:
    (folder / "run").mkdir()
    (folder / "run" / "results.json").write_text("{}")
    (folder / "run" / "rows.jsonl").write_text("")
    return str(folder / "run")


def a_suite(text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "suite.yaml").write_text(text)
        return str(folder / "suite.yaml")

    return write


SET = "name: s\nsets:\n  - {name: a, kind: harmful, path: PATH}\n"
# A command, in which PLACE is what the function makes and PAIRS a good file, and what is said.
FOLDERS: list[tuple[str, Callable[[Path], str], tuple[str, ...]]] = [
    ("fit --model no/model --pairs PAIRS --out PLACE", a_file, ("--out", "is no folder")),
    ("fit --model no/model --pairs PAIRS --out PLACE", below_a_file, ("--out", "is no folder")),
    ("fit --model no/model --pairs PAIRS --out PLACE", read_only, ("--out", "cannot be written to")),
    ("fit --model no/model --pairs PAIRS --out out --work PLACE", a_file, ("--work", "is no folder")),
    ("fit --model no/model --pairs PAIRS --out out --work PLACE", read_only, ("--work", "cannot be written to")),
    ("fit --model no/model --pairs PAIRS --out out --report PLACE", a_file, ("--report", "is no folder")),
    ("fit --model no/model --pairs PAIRS --out out --report PLACE", read_only, ("--report", "cannot be written to")),
    ("fit --model no/model --pairs PAIRS --out out --images PLACE", nowhere, ("--images", "there is no such folder")),
    ("fit --model no/model --pairs PAIRS --out out --images PLACE", a_file, ("--images", "a file, and no folder")),
    ("fit --model PLACE --pairs PAIRS --out out", nowhere, ("--model", "no such model folder")),
    ("fit --model PLACE --pairs PAIRS --out out", a_file, ("--model", "it is a file, and no folder")),
    ("fit --model PLACE --pairs PAIRS --out out", an_empty_folder, ("--model", "config.json is missing")),
    ("fit --model no/model --pairs PLACE --out out", an_empty_folder, ("is a folder: give a file of rows",)),
    ("fit --model no/model --pairs PLACE --out out", nowhere, ("cannot read", "No such file")),
    ("fit --model no/model --pairs PAIRS --benign PLACE --out out", an_empty_folder, ("is a folder: give a file",)),
    ("score --model no/model --guard PLACE PAIRS", nowhere, ("guard.json", "No such file")),
    ("score --model no/model --guard PLACE PAIRS", an_empty_folder, ("guard.json", "No such file")),
    ("score --model no/model --guard PLACE PAIRS", a_file, ("guard.json", "Not a directory")),
    ("score --model no/model --guard PLACE PAIRS", a_torn_bundle, ("guard.json",)),
    ("inspect PLACE", nowhere, ("guard.json", "No such file")),
    ("inspect PLACE", an_empty_folder, ("guard.json", "No such file")),
    ("inspect PLACE", a_torn_bundle, ("guard.json", "Invalid JSON")),
    ("compare PLACE PLACE", nowhere, ("holds no finished run",)),
    ("compare PLACE PLACE", an_empty_folder, ("holds no finished run",)),
    ("compare PLACE PLACE", a_run_of_nothing, ("holds no finished run",)),
    ("eval --model demo --out PLACE", a_file, ("--out", "is no folder")),
    ("eval --model demo --out PLACE", below_a_file, ("--out", "is no folder")),
    ("eval --model demo --out PLACE", read_only, ("--out", "cannot be written to")),
    ("eval --model demo --out out --suite PLACE", an_empty_folder, ("cannot read the suite", "bundled suites: demo")),
    ("eval --model demo --out out --suite PLACE", nowhere, ("cannot read the suite", "bundled suites: demo")),
    ("eval --model demo --out out --suite PLACE", a_suite(SET.replace("PATH", "gone.csv")), ("set a", "gone.csv")),
    ("eval --model demo --out out --suite PLACE", a_suite(SET.replace("PATH", ".")), ("is a folder: give a file",)),
    ("eval --model demo --out out --suite PLACE", a_suite("name: s\nsets: 3\n"), ("sets",)),
    ("eval --model demo --out out --data PLACE", nowhere, ("--data", "there is no such folder")),
    ("eval --model demo --guard PLACE --out out", an_empty_folder, ("guard.json", "No such file")),
    ("eval --model PLACE --modes original --out out", nowhere, ("--model", "no such model folder")),
]


@pytest.mark.parametrize(("command", "make", "says"), FOLDERS)
def test_a_wrong_folder_is_one_line_with_the_fix(
    tmp_path: Path, command: str, make: Callable[[Path], str], says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is read_only and os.geteuid() == 0:
        # Root writes everywhere: what the system would say to anybody else.
        monkeypatch.setattr(
            "server.cli.folders.os.access", lambda path, mode: mode != os.W_OK or Path(path).name != "locked"
        )
    monkeypatch.chdir(tmp_path)
    place, pairs = make(tmp_path), str(data(tmp_path))
    words = [{"PLACE": place, "PAIRS": pairs}.get(word, word) for word in command.split()]
    result = CliRunner().invoke(evaluation if words[0] in ("eval", "compare") else fitting, words)
    assert len(FOLDERS) >= 30
    one_line(result, *says)
    assert not (tmp_path / "out").exists()


def test_the_rows_alone_can_be_checked(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    command = ["fit", "--model", "no/model", "--pairs", str(data(tmp_path)), "--out", str(tmp_path / "out"), "--check"]
    result = CliRunner().invoke(fitting, command)
    assert result.exit_code == 0, result.output
    assert "The rows are enough; the default threshold will aim at an FPR of 5% at most." in result.stdout
    assert (
        "a threshold for an FPR of 1.0%: no: it needs 99 safe calibration prompts, about 574 harmless" in result.stdout
    )
    assert not (tmp_path / "out").exists()
