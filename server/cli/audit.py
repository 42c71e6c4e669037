"""`autosteer audit`: print records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import orjson
import typer

from server.cli.console import mistake
from server.cli.options import Config
from server.record.audit.sink import Filter, Reader, SinkError
from server.record.audit.sinks import make_reader
from server.settings.schema import Settings
from server.settings.sources import ConfigError, did_you_mean, load_settings
from steering.policy import Verdict


def print_audit(
    config: Config = None,
    url: Annotated[str | None, typer.Option(help="Of the audit log. Default: audit.url of the settings.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many records, the newest that match.")] = 20,
    key: Annotated[str | None, typer.Option(help="Only those of this key, by its name.")] = None,
    decision: Annotated[str | None, typer.Option(help=f"Only one of {', '.join(Verdict)}.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only completed, rejected, failed or disconnected.")] = None,
) -> None:
    """Print records of the audit log as JSON lines, oldest first."""
    from server.record.audit.record import Outcome  # which imports numpy

    _check_word("--decision", decision, Verdict)
    _check_word("--outcome", outcome, Outcome)
    try:
        reader = make_reader(url or configured_url(load_settings({}, config).settings))
        if key is not None:
            _check_key(key, reader, load_settings({}, config).settings)
        for record in reader.read(Filter(last, key, decision, outcome)):
            typer.echo(orjson.dumps(record))
    except (ConfigError, SinkError) as error:
        mistake(error)


def configured_url(settings: Settings) -> str:
    """`audit.url` of the settings. Raises ConfigError."""
    if settings.audit is None:
        raise ConfigError(["audit.url is not set; give --config with one, or --url"])
    return settings.audit.url.get_secret_value()


def _check_word(option: str, word: str | None, known: Iterable[str]) -> None:
    """A misspelt word is a mistake: no records would look as if nothing of the kind had happened."""
    words = [*map(str, known)]
    if word is not None and word not in words:
        mistake(f"{option}: {word!r} is none of {', '.join(words)}{did_you_mean(word, words)}")


def _check_key(key: str, reader: Reader, settings: Settings) -> None:
    """A name that nobody knows is a mistake: no records would look like a key that is no longer used."""
    configured = {*(each.name for each in settings.keys), *settings.revoked_keys}
    if key in configured:
        return
    known = sorted(configured | {name for name in reader.usage() if name is not None})
    if key not in known:
        there_are = ", ".join(known) if known else "none"
        hint = did_you_mean(key, known)
        mistake(f"--key: {key!r} is in neither the settings nor the log{hint}; there are {there_are}")
