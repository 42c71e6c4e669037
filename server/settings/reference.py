"""Every setting as tables in Markdown, made from the settings themselves."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.settings.fixed import is_fixed
from server.settings.groups import PolicySettings, nested_model
from server.settings.schema import Settings


def reference() -> str:
    """All tables: the policy `default`, everything else of the top level, then what is nested."""
    policy = list(PolicySettings.model_fields)
    rest = [name for name in Settings.model_fields if name not in policy]
    parts = [
        "### A policy\n",
        *_table(Settings, policy),
        "\n### The server\n",
        *_table(Settings, rest),
    ]
    for name, field in Settings.model_fields.items():
        model = nested_model(field)
        if model is not None and model is not PolicySettings:
            parts += [f"\n### `{name}`\n", *_table(model, list(model.model_fields))]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel], names: list[str]) -> Iterator[str]:
    yield "| setting | default | |"
    yield "|---|---|---|"
    for name in names:
        field = model.model_fields[name]
        fixed = " *" if model is Settings and is_fixed(name) else ""
        yield f"| `{name}`{fixed} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value == () or value == {} or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
