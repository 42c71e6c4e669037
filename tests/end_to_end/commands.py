"""The command line: in a process of its own, and in the test's, which saves the seconds that the imports take."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from typer.testing import CliRunner

from server.cli import main
from server.engine.launch import LaunchSpec
from tests.end_to_end.processes import clean_environment, command
from tests.server.in_thread import InThread


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `autosteer` as a user does."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=240, env=clean_environment(), check=False
    )


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> Ended:
    """Run `autosteer` in this process. A model is loaded here too; one that loads would be served until a signal."""
    with patch.dict("os.environ", clean_environment(environment), clear=True), _as_before(), _loading_here():
        result = CliRunner().invoke(main.app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


@contextmanager
def _loading_here() -> Iterator[None]:
    def in_thread(spec: LaunchSpec) -> InThread:
        return InThread(spec.load)

    with patch.object(main, "EngineProcess", in_thread):
        yield


@contextmanager
def _as_before() -> Iterator[None]:
    """What a command sets for its process is taken back: how it logs, and what it does on a signal."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    kept = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], root.level = handlers, level
        for each, handler in kept.items():
            signal.signal(each, handler)
