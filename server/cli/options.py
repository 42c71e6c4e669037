"""Command-line options made of the settings, so that none is described twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from server.settings.groups import is_one_value
from server.settings.schema import Settings
from server.settings.sources import GONE

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML or TOML file of settings. Environment: AUTOSTEER_CONFIG.")
]


def with_settings(function: Callable[[dict[str, object], Path | None], None]) -> Callable[..., None]:
    """A command that takes `--config` and every setting that is one value; `function` gets those that are given."""

    def command(config: Path | None = None, **values: object) -> None:
        function({name: value for name, value in values.items() if value not in (None, "")}, config)

    single = {name: field for name, field in Settings.model_fields.items() if is_one_value(field)}
    parameters = [
        _parameter("config", Config),
        *(_parameter(name, _option(name, field)) for name, field in single.items()),
        *(_parameter(name, _gone(name)) for name in GONE),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def _parameter(name: str, annotation: Any) -> inspect.Parameter:  # noqa: ANN401  a type
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(name: str, field: FieldInfo) -> Any:  # noqa: ANN401  a type
    """Text, which the settings validate; a flag and its opposite for what is true or false."""
    option = "--" + name.replace("_", "-")
    description = (field.description or "").replace("`", "")
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(f"{option}/--no-{option[2:]}", help=description)]
    default = "" if field.default is None else f" Default: {field.default}."
    return Annotated[str | None, typer.Option(option, metavar="VALUE", help=description + default)]


def _gone(name: str) -> Any:  # noqa: ANN401  a type
    """An option of earlier versions: taken, so that the settings say what to do instead."""
    return Annotated[str | None, typer.Option("--" + name.replace("_", "-"), hidden=True)]
