"""Looser schemas of functions: a grammar can be made of them, and what satisfies the given ones satisfies them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from models.grammar import plain_json
from models.loosened import loosened, says_unfollowed
from models.schema import SchemaError, check_schema, compile_source, source_of
from models.tidied import tidied
from tests.server.scripted import EOS, byte_tokenizer

OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
LISTED: dict[str, tuple[dict[str, Any], object]] = {
    "not": ({**OBJECT, "not": {"required": ["b"]}}, {"a": "x"}),
    "one of": ({"oneOf": [{"type": "string"}, {"type": "integer"}, {"const": 7}]}, 8),
    "one of beside any of": (
        {"oneOf": [{"const": 7}, {"type": "integer"}], "anyOf": [{"type": "integer"}, {"type": "null"}]},
        7,
    ),
    "if": ({**OBJECT, "if": {"properties": {"a": {"const": "x"}}}, "then": {"required": ["b"]}}, {"a": "y"}),
    "distinct items": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2]),
    "contains": ({"type": "array", "contains": {"const": 1}, "minContains": 1}, [1]),
    "required together": ({**OBJECT, "dependentRequired": {"a": ["b"]}}, {"a": "x", "b": 1}),
    "names": ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"ab": 1}),
    "an unknown format": ({"type": "string", "format": "uri-reference"}, "a/b"),
    "a pattern that looks ahead": ({"type": "string", "pattern": "^(?!x).*$"}, "abc"),
    "names by such a pattern": (
        {"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}}, "additionalProperties": False},
        {"a": 1},
    ),
    "a reference to elsewhere": ({**OBJECT, "properties": {"a": {"$ref": "https://example.com/a"}}}, {"a": [1]}),
    "within": ({"type": "array", "items": {"anyOf": [{"not": {"const": 1}, "type": "integer"}]}}, [2]),
}


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    return LLTokenizer(plain_json(byte_tokenizer()), n_vocab=258, eos_token=[EOS])


def compiled(vocabulary: LLTokenizer, schema: dict[str, Any]) -> Any:
    check_schema(schema)
    return compile_source(vocabulary, source_of(schema))


@pytest.mark.parametrize("which", LISTED)
def test_a_grammar_is_made_of_what_is_left(which: str, vocabulary: LLTokenizer) -> None:
    schema, value = LISTED[which]
    with pytest.raises(SchemaError):
        compiled(vocabulary, schema)
    matcher = compiled(vocabulary, loosened(schema))
    assert matcher.consume_tokens([*json.dumps(value, separators=(",", ":")).encode()])
    assert matcher.is_accepting()


def test_what_can_be_followed_stays() -> None:
    kept = {
        **OBJECT,
        "properties": {"not": {"type": "string", "format": "date"}, "oneOf": {"$ref": "#/$defs/A"}},
        "patternProperties": {"^x": {"type": "integer"}},
        "additionalProperties": False,
        "$defs": {"A": {"enum": [{"not": 1}]}},
        "examples": [{"not": {}}],
    }
    assert loosened(kept) == kept


def test_formats_that_say_nothing_of_a_text_are_passed_over(vocabulary: LLTokenizer) -> None:
    for kind, name in (("integer", "int64"), ("number", "double"), ("string", "password")):
        compiled(vocabulary, {"type": kind, "format": name})


@pytest.mark.parametrize("which", LISTED)
def test_it_is_known_which_say_what_is_left_out(which: str) -> None:
    schema, _ = LISTED[which]
    assert says_unfollowed(schema)
    assert not says_unfollowed(loosened(schema))
    assert not says_unfollowed({"properties": {"not": {"enum": [schema]}}, "patternProperties": {"^oneOf": {}}})


def test_a_format_that_is_no_text_is_left_out_or_no_schema() -> None:
    assert loosened({"format": [], "type": "string"}) == {"type": "string"}
    assert tidied({"format": []}) == {"format": []}
