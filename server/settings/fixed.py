"""Which settings only a new start can change."""

from __future__ import annotations

from server.settings.schema import Settings


def fixed_fields() -> tuple[str, ...]:
    """The settings that only a new start can change."""
    return tuple(name for name in Settings.model_fields if is_fixed(name))


def is_fixed(name: str) -> bool:
    """Whether only a new start can change this setting."""
    extra = Settings.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("fixed") is True
