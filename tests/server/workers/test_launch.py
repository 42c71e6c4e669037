"""Our processes import our packages from where the server has them, and nothing that lies about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.process import engine_environment
from server.media.decoder import Decoders
from server.workers import launch
from server.workers.launch import plain_environment, python_command
from tests.server.scripted import png


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the server was started in, and `PYTHONPATH` too, full of modules that processes import."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in ("numpy", "PIL", "struct", "torch", "llguidance", "tokenizers", "server", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return tmp_path / "sprung"


def test_a_decoder_runs_no_file_of_the_folder_it_is_started_in_or_of_pythonpath(trap: Path) -> None:
    decoders = Decoders(1, max_bytes=2**20, max_pixels=100, seconds=30)
    try:
        assert decoders.decode(png()).size == (8, 8)
    finally:
        decoders.close()
    assert not trap.exists()


@pytest.mark.parametrize("module", ["server.engine.process", "server.media.decoder"])
def test_each_kind_of_process_imports_what_is_installed(trap: Path, module: str) -> None:
    """Run without what it is started with, each fails after its imports."""
    process = subprocess.run(
        python_command(module), env=engine_environment(os.environ), stdin=subprocess.DEVNULL, capture_output=True
    )
    assert process.returncode != 0
    assert b"EOFError" in process.stderr or b"ValueError" in process.stderr
    assert not trap.exists()


def test_a_package_that_only_the_server_s_own_path_finds_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where `PYTHONPATH` named the folder of the packages, for whatever program."""
    (tmp_path / "ours.py").write_text("import sys\nprint(__name__, sys.argv[1:], 'json' in sys.modules)\nimport json\n")
    (tmp_path / "json.py").write_text("raise SystemExit('only packages of ours are imported from this folder')\n")
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    monkeypatch.setattr(launch, "PACKAGES", ("ours",))
    command = python_command("ours", "a", 1)
    assert command[:2] == [sys.executable, "-P"]
    told = subprocess.run(command, env=plain_environment(os.environ), capture_output=True, text=True, check=True)
    assert told.stdout == "__main__ ['a', '1'] False\n"


def test_no_environment_names_folders_to_import_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PYTHONPATH": "/x", "PYTHONSTARTUP": "/y", "PATH": "/bin"}
    assert engine_environment(given) == plain_environment(given) == {"PATH": "/bin"}
