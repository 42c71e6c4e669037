"""`autosteer keys`: make API keys, and tell when each was used."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import ValidationError

from server.access.keys import hash_key, new_key
from server.cli.audit import configured_url
from server.cli.console import mistake
from server.cli.options import Config
from server.record.audit.sink import SinkError
from server.record.audit.sinks import make_reader
from server.record.audit.usage import joined
from server.settings.groups import KeySettings
from server.settings.sources import ConfigError, load_settings
from server.settings.values import DEFAULT_POLICY

if TYPE_CHECKING:
    from server.settings.schema import Settings

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """API keys."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="The key's name in the audit log.")],
    policy: Annotated[str, typer.Option(help="The policy that its requests are served under.")] = DEFAULT_POLICY,
    scope: Annotated[str, typer.Option(help="api, or console: the console and /admin, and nothing else.")] = "api",
) -> None:
    """Make a key: print it once, and the entry to add to the config file, which holds only its hash."""
    key = new_key()
    entry = {"name": name, "hash": hash_key(key), "policy": policy}
    if scope != "api":
        entry["scope"] = scope
    try:
        KeySettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        mistake(f"--{first['loc'][0]}: {first['msg']}, not {first['input']!r}")
    typer.echo("The key, which is shown this once and kept nowhere:", err=True)
    typer.echo(key)
    typer.echo("\nAdd to the config file:", err=True)
    typer.echo(yaml.safe_dump({"keys": [entry]}, sort_keys=False, width=200).rstrip())


@app.command()
def usage(
    config: Config = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Of an audit log, once for each server's. Default: audit.url of the settings."),
    ] = None,
) -> None:
    """Print when each key was last used, over all audit logs that are named: those of the settings and of the logs."""
    try:
        settings = load_settings({}, config).settings
        urls = url or [configured_url(settings)]
        found = joined(use for each in urls for use in make_reader(each).usage().items())
    except (ConfigError, SinkError) as error:
        mistake(error)
    since = f"records since {_shown(min(used.first for used in found.values()))}" if found else "no records"
    typer.echo(f"{len(urls)} audit log{'s' if len(urls) > 1 else ''}, {since}")
    states = _states(settings)
    names = [*states, *sorted(name for name in found if name is not None and name not in states)]
    width = max((len(name) for name in names), default=0)
    for name in names:
        used = found.get(name)
        last = "no request" if used is None else f"last {_shown(used.last)}, requests: {used.requests}"
        typer.echo(f"{name:{width}}  {states.get(name, 'not in the settings'):19}  {last}")


def _states(settings: Settings) -> dict[str, str]:
    """What the settings say of each key, by its name."""
    accepted = {each.name: "accepted" for each in settings.accepted_keys}
    return accepted | dict.fromkeys(settings.revoked_keys, "revoked")


def _shown(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
