"""A cache of finished stages on disk: what was computed once is verified by hash and never computed again.

A stage is a folder named after it and a digest of everything that its result depends on. `done.json`, written last,
lists the hashes of its files; without it, or where a hash differs, the stage runs again. Within a stage, `Chunks` keeps
what an interrupted run had finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from steering.files import digest, write_whole

DONE = "done.json"


class Stages:
    """The stages under one folder. `reused` and `computed` name what this run found and what it did."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reused: list[str] = []
        self.computed: list[str] = []

    @property
    def summary(self) -> dict[str, list[str]]:
        """Names of the stages that were found finished, and of those that were computed."""
        return {"reused": self.reused, "computed": self.computed}

    def run(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], None]) -> Path:
        """The folder of a finished stage; `work(folder)` makes it where it is not there. `inputs` must be JSON."""
        key = digest(json.dumps([name, inputs], sort_keys=True).encode())
        folder = self.root / f"{name}-{key[:16]}"
        if _finished(folder):
            self.reused.append(name)
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        for rest in (folder / DONE, *folder.glob(".*")):
            rest.unlink(missing_ok=True)
        work(folder)
        hashes = {path.name: _file_digest(path) for path in sorted(folder.iterdir())}
        write_whole(folder / DONE, json.dumps({"inputs": inputs, "files": hashes}, indent=1, sort_keys=True).encode())
        self.computed.append(name)
        return folder


def _finished(folder: Path) -> bool:
    try:
        files: dict[str, str] = json.loads((folder / DONE).read_bytes())["files"]
        return all(_file_digest(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Chunks:
    """A long tensor `[N, ...]` on disk in pieces, each named by its number and its content's hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, number: int) -> bool:
        """Whether the piece is there, whole; a damaged one is removed."""
        path = self._path(number)
        if path is None:
            return False
        if _file_digest(path).startswith(path.stem.split("-")[1]):
            return True
        path.unlink()
        return False

    def put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a piece, whole or not at all: `x`, and what goes with it."""
        data = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_whole(self.folder / f"{number:06d}-{digest(data)[:16]}.safetensors", data)

    def __iter__(self) -> Iterator[Tensor]:
        """`x` of the pieces in order, one in memory at a time."""
        for tensors in self.tensors():
            yield tensors["x"]

    def tensors(self) -> Iterator[dict[str, Tensor]]:
        """All tensors of the pieces in order, one piece in memory at a time."""
        for path in self._paths():
            yield load_file(path)

    def column(self, place: int) -> Tensor:
        """`x[:, place]` of all pieces, in fp32, without reading the other columns."""
        found = []
        for path in self._paths():
            with safe_open(path, framework="pt") as file:
                found.append(file.get_slice("x")[:, place].float())
        return torch.cat(found)

    def _paths(self) -> Sequence[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path | None:
        return next(iter(self.folder.glob(f"{number:06d}-*.safetensors")), None)


def save_json(path: Path, data: Any) -> None:  # noqa: ANN401
    """Write JSON, whole or not at all, the same bytes for the same data."""
    write_whole(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def load_json(path: Path) -> Any:  # noqa: ANN401
    """What `save_json` wrote."""
    return json.loads(path.read_bytes())


def save_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors, whole or not at all, the same bytes for the same tensors."""
    write_whole(path, save_tensors({name: state[name].detach().cpu().contiguous() for name in sorted(state)}))


def load_state(path: Path) -> dict[str, Tensor]:
    """What `save_state` wrote."""
    return load_file(path)
