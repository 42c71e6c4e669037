"""Environments of clients: a folder for each list of packages, made once."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.clients.catalogue import Client

MAKE_SECONDS = 900


class NotMade(Exception):
    """An environment cannot be made here; the message says why."""


class Environments:
    """Makes them in a folder, which may hold them already."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def command(self, client: Client, programs: Path) -> list[str]:
        """What runs a client's program, in the folder that `folder` tells. Raises NotMade."""
        folder = self.folder(client)
        made = folder / ".made"
        if not made.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for command in _making(client, folder):
                _run(command, folder)
            made.touch()
        if not client.for_node:
            return [str(folder / "bin" / "python"), str(programs / client.program), *client.arguments]
        for program in programs.glob("*.mjs"):  # Node looks for packages from where a program stands
            (folder / program.name).write_bytes(program.read_bytes())
        return ["node", client.program, *client.arguments]

    def folder(self, client: Client) -> Path:
        """Where a client's packages are."""
        first = re.sub(r"\W+", "-", client.packages[0]).strip("-")
        kind = "node" if client.for_node else "python"
        digest = hashlib.sha256(" ".join(client.packages).encode()).hexdigest()[:6]
        return self._root / f"{kind}-{first}-{digest}"

    def versions(self, client: Client) -> str:
        """Which version of its first package is there."""
        folder, package = self.folder(client), client.packages[0].partition("[")[0]
        if client.for_node:
            listed = subprocess.run(["npm", "ls", package, "--depth=0"], cwd=folder, capture_output=True, text=True)
            found = re.search(rf"{re.escape(package)}@(\S+)", listed.stdout)
            return found[1] if found else "?"
        asked = f"import importlib.metadata as m; print(m.version({package!r}))"
        done = subprocess.run([folder / "bin" / "python", "-c", asked], capture_output=True, text=True)
        return done.stdout.strip() or "?"


def _making(client: Client, folder: Path) -> list[Sequence[str]]:
    if client.for_node:
        options = ["--no-audit", "--no-fund", "--loglevel=error"]
        return [["npm", "init", "--yes"], ["npm", "install", *options, *client.packages]]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [[sys.executable, "-m", "venv", str(folder)], [*pip, *client.packages]]


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=MAKE_SECONDS)
    except FileNotFoundError as error:
        raise NotMade(f"{command[0]} is not there") from error
    except subprocess.TimeoutExpired as error:
        raise NotMade(f"{command[-1]}: not installed in {MAKE_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise NotMade(lines[-1][:200] if lines else f"{command[0]} ended with {error.returncode}") from error
