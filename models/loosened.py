"""JSON schemas of functions without what no grammar is made of, where a call need not follow it to the letter.

Whatever satisfies the given schema satisfies the loosened one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.schema import SchemaError, check_pattern
from models.tidied import BY_NAME, PATTERNS, VALUES

NOT_FOLLOWED = frozenset(
    {
        "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else",
        "if", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
        "uniqueItems",
    }
)  # fmt: skip
FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}
)


def loosened(schema: Any) -> Any:  # noqa: ANN401  JSON of any shape
    """A schema, or whatever stands in the place of one, loosened at every depth; one of several may be all of them."""
    if isinstance(schema, list):
        return [loosened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _keyword(key, value) for key, value in schema.items() if _is_followed(key, value)}
    if (several := out.pop("oneOf", None)) is not None:
        out.setdefault("anyOf", several)
    if _loses_patterns(schema):
        out.pop("additionalProperties", None)  # it spoke of names that no pattern matches
    return out


def _keyword(key: str, value: Any) -> Any:  # noqa: ANN401
    if key in VALUES:
        return value
    if key == "patternProperties" and isinstance(value, dict):
        return {pattern: loosened(each) for pattern, each in value.items() if _is_pattern(pattern)}
    if key in BY_NAME and isinstance(value, dict):
        return {name: loosened(each) for name, each in value.items()}
    return loosened(value)


def _is_followed(key: str, value: object) -> bool:
    match key:
        case "format":
            return isinstance(value, str) and value in FORMATS
        case "pattern":
            return _is_pattern(value)
        case "$ref":
            return isinstance(value, str) and value.startswith("#")
    return key not in NOT_FOLLOWED


def _loses_patterns(schema: Mapping[str, Any]) -> bool:
    patterns = schema.get("patternProperties")
    return isinstance(patterns, dict) and not all(map(_is_pattern, patterns))


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str):
        return True  # not ours to judge
    try:
        check_pattern(PATTERNS.get(value, value))
    except SchemaError:
        return False
    return True


def says_unfollowed(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says what is left out where it is loosened. Takes schemas of any depth."""
    waiting: list[tuple[bool, Any]] = [(False, schema)]  # whether its keys are names
    while waiting:
        named, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(False, each) for each in value]
        elif isinstance(value, dict):
            if not named and _says_unfollowed(value):
                return True
            waiting += [
                (not named and key in BY_NAME, each) for key, each in value.items() if named or key not in VALUES
            ]
    return False


def _says_unfollowed(schema: Mapping[str, Any]) -> bool:
    is_followed = all(_is_followed(key, value) for key, value in schema.items())
    return not is_followed or "oneOf" in schema or _loses_patterns(schema)
