"""What a fit was told, kept in its work folder, so that the next one is told only what is new (`fit --from`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import typer

from server.cli.console import mistake

RECIPE = "fit.json"
OF_ONE_FIT = ("earlier", "out", "work", "report", "against", "check")  # options that the next fit does not take over
FILES = ("pairs", "benign", "hard_negatives", "responses", "add")  # options that name what is read


def recall(context: typer.Context, work: Path | None) -> Path | None:
    """Take what an earlier fit was told for what this one is not told. A mistake where none ended in that folder."""
    if work is None:
        return None
    try:
        kept = json.loads((work / RECIPE).read_bytes())
    except FileNotFoundError:
        mistake(f"--from {work}: no fit has ended there; give the work folder of one (OUT.work, or its --work)")
    except (OSError, ValueError) as error:
        mistake(f"--from {work}: {RECIPE} cannot be read: {error}")
    context.default_map = {**(context.default_map or {}), **kept["options"]}
    for name, was in kept["files"].items():
        if Path(name).is_file() and _hash(Path(name)) != was:
            typer.echo(f"{name} has changed since that fit", err=True)
    return work


def remember(context: typer.Context, work: Path, out: Path) -> None:
    """Keep what this fit was told; the next one is compared with its bundle."""
    from steering.files import write_whole

    told = {name: value for name, value in context.params.items() if name not in OF_ONE_FIT and value is not None}
    if Path(told["model"]).exists():
        told["model"] = Path(told["model"])
    files = [file for name in FILES for file in told.get(name, ())]
    options = {**{name: _plain(value) for name, value in told.items()}, "against": _plain(out)}
    kept = {"options": options, "files": {_plain(file): _hash(file) for file in files}}
    write_whole(work / RECIPE, json.dumps(kept, indent=1).encode())


def _plain(value: Any) -> Any:  # noqa: ANN401  what JSON has
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
