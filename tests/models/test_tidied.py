"""Schemas as zod and pydantic write them are tidied into what grammars can follow, and mean the same."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.grammar import GrammarCompiler
from models.schema import SchemaError, check_schema
from models.tidied import FAR, PATTERNS, tidied
from tests.server.scripted import byte_tokenizer

BYTES = GrammarCompiler(byte_tokenizer(), 258, {256})
INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
WRITTEN_BY_LIBRARIES: dict[str, Any] = {
    "zod's email": {"type": "string", "format": "email", "pattern": next(iter(PATTERNS))},
    "pydantic's Decimal": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": [*PATTERNS][1]}]},
    "zod's record": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
    "a set that may repeat": {"type": "array", "items": {"type": "string"}, "uniqueItems": False},
    "int64": INT64,
    "a double": {"type": "number", "exclusiveMaximum": 1.7e308, "minimum": -1.7e308},
    "within": {"$defs": {"A": INT64}, "type": "object", "properties": {"a": {"items": {"$ref": "#/$defs/A"}}}},
}


@pytest.mark.parametrize("name", WRITTEN_BY_LIBRARIES)
def test_what_libraries_write_is_taken(name: str) -> None:
    BYTES.compile(WRITTEN_BY_LIBRARIES[name])


ALPHABETS = {0: "ab.@'+-_c", 1: "+-.019"}


@given(st.data())
def test_patterns_without_looking_ahead_match_the_same_texts(data: st.DataObject) -> None:
    for number, (pattern, other) in enumerate(PATTERNS.items()):
        text = data.draw(st.text(ALPHABETS[number], max_size=12)) + data.draw(st.sampled_from(["", "@a.bc", "1"]))
        assert bool(re.search(pattern, text)) == bool(re.search(other, text)), text


KEYS = st.sampled_from(["minimum", "maximum", "propertyNames", "uniqueItems", "pattern", "properties", "a"])
VALUES = st.sampled_from([2**63, -(2**70), 5, False, {"type": "string"}, True, "x"])


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.sampled_from(["const", "enum", "default", "examples"]))
def test_values_are_left_as_they_are(value: dict[str, Any], keyword: str) -> None:
    given_value = [value] if keyword in ("enum", "examples") else value
    assert tidied({keyword: given_value}) == {keyword: given_value}


def test_names_of_properties_are_no_keywords() -> None:
    named = {"properties": {name: {"type": "string"} for name in ("propertyNames", "uniqueItems", "maximum")}}
    assert tidied(named) == named


@given(low=st.integers(-(2**70), 2**70), high=st.integers(-(2**70), 2**70))
def test_what_satisfies_the_tidied_schema_satisfies_the_given_one(low: int, high: int) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    validator = jsonschema_rs.validator_for(tidied(schema))
    given_one = jsonschema_rs.validator_for(schema)
    for number in (low, high, -FAR, FAR, 0):
        assert not validator.is_valid(number) or given_one.is_valid(number)


@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_a_pattern_that_looks_ahead_is_named_with_its_place(keyword: str) -> None:
    value = "^(?=a)b" if keyword == "pattern" else {"^(?=a)b": {}}
    with pytest.raises(SchemaError, match=rf"no other.*'\^\(\?=a\)b' in properties\.code\.{keyword}$"):
        check_schema({"type": "object", "properties": {"code": {keyword: value}}})
