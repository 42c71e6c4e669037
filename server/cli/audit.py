"""`autosteer audit`: print records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from server.cli.console import mistake
from server.cli.options import Config
from server.record.audit.sink import Filter, SinkError
from server.record.audit.sinks import make_reader
from server.settings.sources import ConfigError, load_settings


def print_audit(
    config: Config = None,
    url: Annotated[str | None, typer.Option(help="Of the audit log. Default: audit.url of the settings.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many records, the newest that match.")] = 20,
    key: Annotated[str | None, typer.Option(help="Only those of this key, by its name.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only pass, monitored, steered or blocked.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only completed, rejected, failed or disconnected.")] = None,
) -> None:
    """Print records of the audit log as JSON lines, oldest first."""
    try:
        for record in make_reader(url or _configured(config)).read(Filter(last, key, decision, outcome)):
            typer.echo(orjson.dumps(record))
    except (ConfigError, SinkError) as error:
        mistake(error)


def _configured(config: Path | None) -> str:
    audit = load_settings({}, config).settings.audit
    if audit is None:
        raise ConfigError(["audit.url is not set; give --config with one, or --url"])
    return audit.url.get_secret_value()
