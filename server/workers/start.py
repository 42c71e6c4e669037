"""Run a module of ours in a new process: `python -P start.py FOLDER PACKAGES MODULE ARGUMENT...`.

The process gets neither `PYTHONPATH` nor the folder that the server was started in, so that no file lying there is
imported by accident. `PACKAGES` (comma-separated) are imported from `FOLDER`, where the process that starts this one
has them from, and nothing else is imported from there.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder


class OwnPackages:
    """An import finder of a few top-level packages in one folder."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        """Where a top-level package of ours is; None for all other modules."""
        return PathFinder.find_spec(name, [self._folder]) if path is None and name in self._names else None


def main() -> None:
    """Run the module that the arguments name as `python -m` would."""
    _, folder, names, module, *arguments = sys.argv
    sys.meta_path.insert(0, OwnPackages(folder, names.split(",")))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
