"""JSON schemas made narrower where they leave open what a weak model writes without end: further keys, long strings.

Whatever satisfies the narrowed schema satisfies the given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.tidied import BY_NAME, VALUES

_OBJECTS = frozenset(
    {
        "additionalProperties", "dependentRequired", "maxProperties", "minProperties", "patternProperties",
        "properties", "propertyNames", "required", "unevaluatedProperties",
    }
)  # fmt: skip
# What says of the same value: an object that is closed in one of them could not have what another asks for.
_SAME_VALUE = frozenset({"$ref", "allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"})
_SAY_MORE = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})
_BOUND = frozenset({"const", "enum", "format", "maxLength", "pattern"})


def narrowed(schema: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """A schema whose objects have only the properties that they list, unless they say otherwise.

    Strings that nothing bounds have at most so many characters. Objects that are put together of several schemas stay
    open, and all do where one of those is a reference.
    """
    narrowing = _Narrowing(longest)
    out: dict[str, Any] = narrowing.of(schema)
    if not narrowing.refers:
        return out
    return dict(_Narrowing(longest, closes=False).of(schema))


class _Narrowing:
    def __init__(self, longest: int, *, closes: bool = True) -> None:
        self.refers = False  # a part of an object is a reference
        self._longest = longest
        self._closes = closes

    def of(self, schema: Any, *, part: bool = False) -> Any:  # noqa: ANN401  JSON of any shape
        """A schema, or whatever stands in the place of one. `part`: another says more of the same value."""
        if isinstance(schema, list):
            return [self.of(each, part=part) for each in schema]
        if not isinstance(schema, dict):
            return schema
        part = part or _combines(schema)
        self.refers = self.refers or (part and "$ref" in schema)
        out = {key: self._keyword(key, value, part) for key, value in schema.items()}
        if self._closes and not part and _is_open(schema):
            out["additionalProperties"] = False
        if _is_endless(schema) and schema.get("minLength", 0) <= self._longest:
            out["maxLength"] = self._longest
        return out

    def _keyword(self, key: str, value: Any, part: bool) -> Any:  # noqa: ANN401
        if key in VALUES:
            return value
        if key in _SAME_VALUE and key != "dependentSchemas":
            return self.of(value, part=part)
        if key in (*BY_NAME, "dependentSchemas") and isinstance(value, dict):
            return {name: self.of(each, part=part and key == "dependentSchemas") for name, each in value.items()}
        return self.of(value)


def _combines(schema: Mapping[str, Any]) -> bool:
    """Whether several schemas speak of one value."""
    same = _SAME_VALUE & schema.keys()
    several = isinstance(parts := schema.get("allOf"), list) and len(parts) > 1
    return several or len(same) > 1 or bool(same and _OBJECTS & schema.keys())


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Whether an object lists its properties, and may have others only because nobody said that it may not."""
    listed, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(listed, dict)
        and not _SAY_MORE & schema.keys()
        and isinstance(required, list)
        and all(isinstance(name, str) and name in listed for name in required)
    )


def _is_endless(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    return "string" in (kinds if isinstance(kinds, list) else [kinds]) and not _BOUND & schema.keys()
