"""`autosteer keys`: make API keys."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from server.access.keys import hash_key, new_key
from server.cli.console import mistake
from server.settings.groups import KeySettings
from server.settings.values import DEFAULT_POLICY

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="The key's name in the audit log.")],
    policy: Annotated[str, typer.Option(help="The policy that its requests are served under.")] = DEFAULT_POLICY,
) -> None:
    """Make a key: print it once, and the entry to add to the config file, which holds only its hash."""
    key = new_key()
    entry = {"name": name, "hash": hash_key(key), "policy": policy}
    try:
        KeySettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        mistake(f"--{first['loc'][0]}: {first['msg']}, not {first['input']!r}")
    typer.echo("The key, which is shown this once and kept nowhere:", err=True)
    typer.echo(key)
    typer.echo("\nAdd to the config file:", err=True)
    typer.echo(yaml.safe_dump({"keys": [entry]}, sort_keys=False, width=200).rstrip())
