"""`make serve` gives the server what stands on make's own command line, and nothing of the environment."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.operating.programs import ROOT

CONDA = {"HOST": "x86_64-conda-linux-gnu", "PORT": "tcp://10.0.0.1:80", "MODEL": "T14", "GUARD": "on"}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ([], []),
        (["HOST=0.0.0.0", "PORT=9000"], ["--host", "0.0.0.0", "--port", "9000"]),
        (["MODEL=a b", "GUARD=none"], ["--model", "a b", "--guard", "none"]),
    ],
)
def test_options_are_those_given_to_make(given: list[str], options: list[str]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "serve", *given],
        cwd=ROOT, env={**os.environ, **CONDA}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    _, _, command = done.stdout.rpartition("autosteer serve")
    assert shlex.split(command.replace("\\\n", " ")) == options
