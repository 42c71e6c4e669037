"""What README and docs show of asking a server: each block, in Python or curl, is run against one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.processes import ServerProcess
from tests.markdown import PAGES, RUN_WHOLE, commands, fenced

SHOWN = "http://127.0.0.1:8000"
FEWER = {"utility(1000,": "utility(10,", "pairs(300,": "pairs(3,"}  # to draw all of them takes seconds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks are run: it has the picture that one of them sends."""
    Image.new("RGB", (96, 96), "white").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PROGRAMS = [
    page for page in PAGES if page.stem != "structures" and any(each.not_run is None for each in fenced(page, "python"))
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PROGRAMS, ids=lambda each: each.stem)
def test_the_programs_of_a_page_run_one_after_another(
    page: Path, guarded: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for block in fenced(page, "python"):
        text = block.text
        for shown, here in {SHOWN: guarded.url, **FEWER}.items():
            text = text.replace(shown, here)
        exec(compile(text, str(page), "exec"), names)
        told = capsys.readouterr().out
        assert bool(told.strip()) == ("print(" in block.text), block.text


ASKED = [
    (page.stem, block.text)
    for page in PAGES
    if page.stem not in RUN_WHOLE
    for block in commands(page)
    if block.not_run is None and block.asks_a_server
]


@pytest.mark.parametrize(("page", "text"), ASKED, ids=[page for page, _ in ASKED])
def test_what_is_asked_by_curl_is_answered(page: str, text: str, guarded: ServerProcess, folder: Path) -> None:
    asked = text.replace(SHOWN, guarded.url)
    done = subprocess.run(["sh", "-euc", asked], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}"
    assert '"finish_reason"' in done.stdout, done.stdout


def test_there_is_something_to_run() -> None:
    assert {page.stem for page in PROGRAMS} >= {"README", "api", "clients", "demo-model"}
    assert ASKED
