"""The two pages for a first hour: every command that they fence is run, in one shell, to the page's end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from steering.manifest import load_manifest
from tests.end_to_end.forked_command import forked_command
from tests.end_to_end.processes import clean_environment, free_port
from tests.markdown import commands, script

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "first-hour-fitting.md", DOCS / "first-hour-operating.md"]
PORT = "8000"
STOP = 'trap \'[ -z "${SERVER:-}" ] || kill "$SERVER" 2>/dev/null || true\' EXIT\n'  # also where a command fails


def run_page(page: Path, folder: Path, smaller: Mapping[str, str]) -> str:
    """What the page's commands print. `smaller`: what is replaced in them, so that the test takes less time."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (folder / "models").symlink_to(ROOT / "models")
    text = script(page)
    for shipped, here in {PORT: str(free_port()), **smaller}.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    elsewhere = folder.with_name(f"{folder.name}-commands")
    elsewhere.mkdir()
    with forked_command(elsewhere) as programs:
        code, output, errors = _in_shell(STOP + text, folder, programs)
    assert code == 0, f"{output[-3000:]}\n{errors[-3000:]}"
    return output


def _in_shell(text: str, folder: Path, programs: Path) -> tuple[int, str, str]:
    """How the commands ended, and what they wrote."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["sh", "-euc", text], cwd=folder, env=clean_environment({"PATH": path, "OMP_NUM_THREADS": "1"}), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=500)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors


def reasons(output: str) -> list[str]:
    """How each chat of the output ended."""
    chats = [json.loads(line) for line in output.splitlines() if line.startswith('{"id":"chatcmpl')]
    return [chat["choices"][0]["finish_reason"] for chat in chats]


@pytest.mark.parametrize("page", PAGES, ids=lambda each: each.stem)
def test_what_is_not_run_says_why_and_is_little(page: Path) -> None:
    blocks = commands(page)
    assert len([block for block in blocks if block.not_run]) <= 3 < len(blocks) / 2
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text()


def test_the_page_about_fitting_ends_with_a_guard_that_is_served_and_watched(tmp_path: Path) -> None:
    output = run_page(PAGES[0], tmp_path, {"--scale 0.1": "--scale 0.05", "--limit 10": "--limit 1"})
    assert "The rows are enough" in output
    assert reasons(output) == ["stop", "content_filter"]
    decisions = [line for line in output.splitlines() if line.startswith("autosteer_guard_decisions_total")]
    assert sorted(line.partition('decision="')[2].partition('"')[0] for line in decisions) == ["pass", "steered"]
    assert (tmp_path / "first-hour" / "guard.report" / "report.html").is_file()
    assert load_manifest(tmp_path / "first-hour" / "guard").validation["auroc"] > 0.9
    assert (tmp_path / "first-hour" / "eval" / "results.md").is_file()


def test_the_page_about_operating_ends_with_a_server_that_was_asked_watched_and_changed(tmp_path: Path) -> None:
    output = run_page(PAGES[1], tmp_path, {})
    folder = tmp_path / "first-server"
    assert reasons(output) == ["stop", "content_filter"]
    assert '"code":"invalid_api_key"' in output
    (blocked,) = [json.loads(line) for line in output.splitlines() if '"decision":"blocked"' in line]
    assert (blocked["key"], blocked["policy"]) == ("web-shop", "strict")
    assert "web-shop  accepted" in output
    assert "mode: steer -> block" in output
    assert "autosteer_config_last_reload_successful 0.0" in output
    assert (folder / "web-shop.key").stat().st_mode & 0o077 == 0
    assert (folder / "web-shop.key").read_text().strip() not in (folder / "server.log").read_text()
