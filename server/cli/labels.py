"""`autosteer labels`: what reviewers said, as files that `autosteer fit` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.console import mistake
from server.cli.folders import writable
from server.cli.options import Config
from server.settings.sources import ConfigError, load_settings

app = typer.Typer(help="Labels that reviewers gave on the console.", no_args_is_help=True)


@app.callback()
def labels() -> None:
    """Labels that reviewers gave on the console."""


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    config: Config = None,
) -> None:
    """Write labelled requests as rows for `autosteer fit`: hard negatives, harmless and harmful prompts."""
    from server.record.audit.sink import SinkError
    from server.record.audit.sinks import review_file
    from server.review.beside import store_beside
    from server.review.export import LABELS, exported

    try:
        audit = load_settings({}, config).settings.audit
    except ConfigError as error:
        mistake(error)
    path = None if audit is None else review_file(audit)
    if audit is None or (path is not None and not path.exists()):
        mistake("there are no labels: the console keeps them beside the audit log (audit.url)")
    try:
        found = exported(store_beside(audit).labels())
    except SinkError as error:
        mistake(error)
    writable("--out", out).mkdir(parents=True, exist_ok=True)
    for name, rows in found.rows.items():
        (out / name).write_bytes(found.data(name))
        typer.echo(f"{out / name}: {len(rows)}")
    typer.echo(f"held out of a fit, in {LABELS} alone: {found.held_out}")
    for why, count in found.left_out.items():
        typer.echo(f"left out: {count}, {why}")
