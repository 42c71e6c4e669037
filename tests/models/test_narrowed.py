"""Narrower schemas: closed objects and bounded strings, and whatever satisfies them satisfies the given ones."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLTokenizer

from models.grammar import plain_json
from models.narrowed import narrowed
from models.schema import compile_source, source_of
from tests.random_schemas import random_object, sampled
from tests.server.scripted import EOS, byte_tokenizer

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
B: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}}}
CLOSED: dict[str, dict[str, Any]] = {
    "an object": A,
    "one without properties": {"type": "object", "properties": {}},
    "within another": {"type": "array", "items": A},
    "one of several": {"anyOf": [A, {"type": "null"}]},
    "one by reference": {"$defs": {"A": A}, "type": "array", "items": {"$ref": "#/$defs/A"}},
    "a reference alone in allOf": {"$defs": {"A": A}, "allOf": [{"$ref": "#/$defs/A"}]},
}
OPEN: dict[str, dict[str, Any]] = {
    "no properties are listed": {"type": "object"},
    "others are allowed": {**A, "additionalProperties": True},
    "others have a schema": {**A, "additionalProperties": {"type": "integer"}},
    "others have a pattern": {**A, "patternProperties": {"x": {}}},
    "one is required that is not listed": {**A, "required": ["c"]},
    "put together": {"allOf": [A, B]},
    "put together by reference": {"$defs": {"A": A}, "properties": {"b": {}}, "allOf": [{"$ref": "#/$defs/A"}]},
    "listed beside alternatives": {**A, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
    "a value": {"const": A},
    "a default": {"default": A},
}


@pytest.mark.parametrize("which", CLOSED)
def test_an_object_has_the_properties_that_it_lists(which: str) -> None:
    assert "'additionalProperties': False" in str(narrowed(CLOSED[which], 9))


@pytest.mark.parametrize("which", OPEN)
def test_an_object_stays_open(which: str) -> None:
    assert narrowed(OPEN[which], 9) == OPEN[which]


def test_strings_that_nothing_bounds_are_bounded() -> None:
    bounded = {"type": "string", "maxLength": 9}
    assert narrowed({"type": "string"}, 9) == bounded
    assert narrowed({"type": ["string", "null"]}, 9) == {"type": ["string", "null"], "maxLength": 9}
    assert narrowed({"items": {"type": "string", "minLength": 3}}, 9)["items"] == {**bounded, "minLength": 3}
    for bound, value in {"maxLength": 99, "pattern": "a*", "format": "date", "const": "a", "minLength": 10}.items():
        schema = {"type": "string", bound: value}
        assert narrowed(schema, 9) == schema
    assert narrowed({"properties": {"type": {"const": "string"}}}, 9)["properties"] == {"type": {"const": "string"}}


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_satisfies_the_narrowed_schema_satisfies_the_given_one(count: int) -> None:
    vocabulary = LLTokenizer(plain_json(byte_tokenizer()), n_vocab=258, eos_token=[EOS])
    for seed in range(count):
        chance = Random(seed)
        schema = random_object(chance)
        matcher = compile_source(vocabulary, source_of(narrowed(schema, 8)))
        text = bytes(sampled(matcher, chance, EOS, tokens=600)).decode()
        jsonschema_rs.validate(schema, json.loads(text))
