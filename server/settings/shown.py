"""Settings as people read them: without secrets, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from server.settings.groups import NoKeys
from server.settings.schema import Settings

ABSENT = "not given"


def plain(value: Any) -> Any:  # noqa: ANN401  any setting
    """A setting as YAML has it; of secrets, only what says which one it is."""
    match value:
        case BaseModel():
            return {
                name: plain(getattr(value, name)) for name in type(value).model_fields if name in value.model_fields_set
            }
        case dict():
            return {key: plain(each) for key, each in value.items()}
        case NoKeys():
            return "none"
        case tuple():
            return [plain(each) for each in value]
        case SecretStr():
            return shortened(value.get_secret_value())
        case str():
            return str(value)
    return value


def shortened(secret: str) -> str:
    """A hash without most of it, a URL without its password and options."""
    if secret.startswith("sha256:"):
        return secret[:15] + "..."
    if secret.startswith("file:"):
        return secret  # it has neither
    from sqlalchemy import make_url  # takes .2 s, but is there where the server writes to a database

    return make_url(secret).set(query={}).render_as_string(hide_password=True)


def differences(old: Settings, new: Settings) -> list[str]:
    """One phrase for each value that differs, such as `policies.strict.threshold: 0.5 -> 0.4`; no secrets."""
    before, after = (dict(_leaves(each)) for each in (old, new))
    return [
        f"{path}: {before.get(path, ABSENT)} -> {after.get(path, ABSENT)}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path, ABSENT) != after.get(path, ABSENT)
    ]


def _leaves(settings: Settings) -> Iterator[tuple[str, object]]:
    for name in type(settings).model_fields:
        yield from _leaves_of(name, plain(getattr(settings, name)))


def _leaves_of(path: str, value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401  any setting
    """What has a name within a value has a path of its own."""
    match value:
        case Mapping():
            for key, each in value.items():
                yield from _leaves_of(f"{path}.{key}", each)
        case [{"name": _}, *_]:
            for each in value:
                yield from _leaves_of(f"{path}.{each['name']}", {k: v for k, v in each.items() if k != "name"})
        case _:
            yield path, value
