"""JSON schemas as libraries write them, without what is always true or more than a grammar can count.

Whatever satisfies the tidied schema satisfies the given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

FAR = 10**18  # bounds beyond it, as of 64-bit integers, are drawn in: no grammar is made of them
BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
VALUES = frozenset({"const", "enum", "default", "examples"})
# Formats of OpenAPI that say how a program holds a value, and nothing of its text.
_HELD_AS = frozenset({"binary", "byte", "double", "float", "int32", "int64", "password"})
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")

# Patterns that look ahead, which grammars cannot, and others that the same texts match.
PATTERNS: Mapping[str, str] = {
    # zod's email: no dot at the beginning, and never two
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
    # pydantic's Decimal: at least one digit
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$",
}


def tidied(schema: Any) -> Any:  # noqa: ANN401  JSON of any shape
    """A schema, or whatever stands in the place of one, tidied at every depth."""
    if isinstance(schema, list):
        return [tidied(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _keyword(key, value) for key, value in schema.items() if not _always_true(key, value)}
    _draw_in(out)
    return out


def _keyword(key: str, value: Any) -> Any:  # noqa: ANN401
    if key in VALUES:
        return value
    if key in BY_NAME and isinstance(value, dict):
        patterns = key == "patternProperties"
        return {PATTERNS.get(name, name) if patterns else name: tidied(each) for name, each in value.items()}
    if key == "pattern" and isinstance(value, str):
        return PATTERNS.get(value, value)
    return tidied(value)


def _always_true(key: str, value: object) -> bool:
    if key == "propertyNames":
        return value is True or value in ({}, {"type": "string"})
    if key == "format":
        return isinstance(value, str) and value in _HELD_AS
    return key == "uniqueItems" and value is False


def _draw_in(schema: dict[str, Any]) -> None:
    """Draw bounds in, unless the other side leaves nothing there."""
    low = [value for key in _LOWER if _is_number(value := schema.get(key))]
    high = [value for key in _UPPER if _is_number(value := schema.get(key))]
    for key in _LOWER:
        if _is_number(value := schema.get(key)) and value < -FAR and all(each > -FAR for each in high):
            schema[key] = -FAR
    for key in _UPPER:
        if _is_number(value := schema.get(key)) and value > FAR and all(each < FAR for each in low):
            schema[key] = FAR


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
