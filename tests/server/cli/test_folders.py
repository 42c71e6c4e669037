"""Folders of long commands: tried first, and held by one run at a time; progress where there is no terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from server.cli.console import resumable
from server.cli.folders import held, writable
from server.cli.progress import ProgressLines


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(typer.Exit):
        writable("--out", tmp_path / "file" / "out")
    assert capsys.readouterr().err == f"autosteer: --out {tmp_path}/file/out: {tmp_path}/file is no folder\n"
    assert not writable("--out", tmp_path / "a" / "b").exists()  # until there is something to write


def test_a_second_run_is_told_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path), pytest.raises(typer.Exit), held(tmp_path):
        pass
    assert f"process {os.getpid()} works in {tmp_path}" in capsys.readouterr().err
    with held(tmp_path):  # the first has ended
        pass


def test_an_interrupted_run_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, resumable():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines() as progress:
        task = progress.add_task("states", total=300)
        for _ in range(300):
            progress.advance(task)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("states: 1 of 300")
    assert last.startswith("states: 300 of 300")
