"""What the commands share: mistakes as one line, progress bars, loading a model, options. Torch only to load one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from models.backbone import Backbone

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
EXIT_ENGINE = 3  # it has failed and is not started again here: whoever supervises the process starts it anew
EXTRAS = {"sklearn": "fit", "matplotlib": "fit", "scipy": "eval", "openai": "eval", "pyarrow": "eval", "yaml": "eval"}

Model = Annotated[str, typer.Option(help="Hub id or folder of the model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0; several with commas share the collecting.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")]


def mistake(message: object) -> NoReturn:
    """End the command with one line on stderr and exit code 2."""
    typer.echo("autosteer: " + " ".join(str(message).split()), err=True)
    raise typer.Exit(EXIT_MISTAKE)


@contextmanager
def mistakes() -> Iterator[None]:
    """What the user can put right is one line; anything else is ours, with its traceback."""
    from models.errors import LoadError, PromptError
    from steering.errors import BundleError, DataError, FitError, RunError

    try:
        yield
    except (LoadError, BundleError, DataError, FitError, PromptError, RunError) as error:
        mistake(error)
    except ModuleNotFoundError as error:
        if (extra := EXTRAS.get((error.name or "").split(".")[0])) is None:
            raise
        mistake(f"this needs the extra packages (pip install 'autosteer-server[{extra}]'): {error}")


def load(model: str, device: str, dtype: str, batch: int, revision: str | None) -> list[Backbone]:
    """The model once per device."""
    from models.load import load_backbone

    devices = device.split(",")
    return [load_backbone(model, device=each, dtype=dtype, max_rows=batch, revision=revision) for each in devices]


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends the command with the word that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("autosteer: stopped; run the same command again to go on where it was", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def progress_bar() -> Progress:
    """A bar per stage, with what is done and what is left, on stderr; lines where that is no terminal."""
    from rich.console import Console

    if not Console(stderr=True).is_terminal:
        from server.cli.progress import ProgressLines

        return ProgressLines()
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns, TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(), console=Console(stderr=True)
    )
