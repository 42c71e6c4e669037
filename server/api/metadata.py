"""`metadata`: pairs of words that an answer gives back."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema
from pydantic_core import PydanticCustomError

from server.api.fields import NO_NUL, Text, unless_null

MAX_METADATA = 16


def _metadata(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("metadata", "must be an object of strings")
    if len(value) > MAX_METADATA:
        raise PydanticCustomError("metadata", f"at most {MAX_METADATA} pairs are allowed, not {len(value)}")
    for key, text in value.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise PydanticCustomError(
                "metadata", "keys have at most 64 characters and values are strings of at most 512"
            )
    return value


_METADATA_SCHEMA = WithJsonSchema(
    {
        "type": ["object", "null"],
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512, **NO_NUL},
        "maxProperties": MAX_METADATA,
    }
)

Metadata = Annotated[dict[str, Text] | None, unless_null(_metadata), _METADATA_SCHEMA]
