"""How a process of ours is started: the command, and the environment that it gets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from server.workers import start

PACKAGES = ("models", "steering", "server")
FOLDER = Path(__file__).parents[2]  # that holds them
# With `PYTHONPATH` a process would import whatever lies in a folder that was meant for another program.
IMPORT_VARIABLES = frozenset({"PYTHONPATH", "PYTHONSTARTUP"})
# What a process needs that loads no model: where its interpreter and libraries are, and how to write text.
PLAIN_VARIABLES = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


def python_command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of ours, imported from where this process has it."""
    # -P: the folder that the server was started in is no place to import from.
    return [
        *(sys.executable, "-P", str(Path(start.__file__).absolute())),
        *(str(FOLDER), ",".join(PACKAGES), module),
        *map(str, arguments),
    ]


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that needs none of the server's variables, secrets among them."""
    return {name: environment[name] for name in PLAIN_VARIABLES if name in environment}


def without_import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would make Python run files that are not the server's."""
    return {name: value for name, value in environment.items() if name not in IMPORT_VARIABLES}
