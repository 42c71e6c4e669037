"""JSON schemas as grammars: whatever is sampled satisfies them, and no schema costs much."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from models.demo import CHECKPOINT
from models.grammar import GrammarCompiler
from models.row_sampler import GrammarError
from models.schema import (
    MAX_PATTERN_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_VALUES,
    SchemaError,
    check_schema,
)
from tests.server.scripted import EOS, byte_tokenizer
from tests.tiny import TinyModels

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
BYTES = GrammarCompiler(byte_tokenizer(), 258, {EOS})


def tokens_in(mask: bytes) -> list[int]:
    return [int(token) for token in np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))]


def written(schema: Mapping[str, Any], data: st.DataObject, tokens: int = 2000) -> str:
    """A text that the grammar allows, each token drawn from those that it allows then."""
    grammar = BYTES.compile(schema)
    ids: list[int] = []
    for _ in range(tokens):
        allowed = tokens_in(grammar.allowed())
        assert allowed
        token = EOS if EOS in allowed else data.draw(st.sampled_from(allowed))
        if token == EOS:
            grammar.finish()
            return bytes(ids).decode()
        grammar.accept(token)
        ids.append(token)
    raise AssertionError("the text does not end")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_sampled_satisfies_the_schema(data: st.DataObject) -> None:
    found = json.loads(written(PERSON, data))
    assert found.keys() == {"name", "age", "tags"}
    assert isinstance(found["name"], str)
    assert len(found["name"]) <= 6
    assert type(found["age"]) is int
    assert 0 <= found["age"] <= 130
    assert len(found["tags"]) <= 3
    assert set(found["tags"]) <= {"a", "b"}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_pattern_an_enumeration_and_a_reference(data: st.DataObject) -> None:
    schema = {
        "$defs": {"code": {"type": "string", "pattern": "^[A-F]{2}-[0-9]{1,3}$"}},
        "type": "object",
        "properties": {"code": {"$ref": "#/$defs/code"}, "kind": {"enum": ["x", 1, None]}},
        "required": ["code", "kind"],
        "additionalProperties": False,
    }
    found = json.loads(written(schema, data))
    letters, digits = found["code"].split("-")
    assert set(letters) <= set("ABCDEF")
    assert digits.isdecimal()
    assert found["kind"] in ("x", 1, None)


def test_over_the_bundled_model_s_tokenizer() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(CHECKPOINT))
    grammar = GrammarCompiler(tokenizer, len(tokenizer) + 7, {tokenizer.eos_token_id}).compile({"type": "object"})
    for token in tokenizer.encode('{"a":[1,"é"]}', add_special_tokens=False):
        allowed = tokens_in(grammar.allowed())
        assert token in allowed
        assert max(allowed) < len(tokenizer)  # nothing beyond the vocabulary
        grammar.accept(token)
    assert tokenizer.eos_token_id in tokens_in(grammar.allowed())
    grammar.finish()


@pytest.mark.parametrize("family", ["llava_onevision", "llama", "qwen3_vl"])
def test_words_that_spell_added_tokens_are_text(tiny_models: TinyModels, family: str) -> None:
    backbone = tiny_models.backbone(family)
    tokenizer = backbone.tokenizer
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    spelled = "x" + " y".join(text for text in added if text.isprintable())[:400]
    grammar = GrammarCompiler(tokenizer, len(tokenizer), backbone.info.eos_ids).compile({"const": spelled})
    ids: list[int] = []
    while backbone.info.eos_ids.isdisjoint(allowed := tokens_in(grammar.allowed())):
        grammar.accept(allowed[0])
        ids.append(allowed[0])
    assert set(added.values()).isdisjoint(ids)
    assert json.loads(tokenizer.decode(ids)) == spelled


def test_a_text_that_ends_early_or_leaves_the_grammar_is_an_error() -> None:
    grammar = BYTES.compile({"type": "object"})
    grammar.accept(ord("{"))
    with pytest.raises(GrammarError):
        grammar.finish()
    with pytest.raises(GrammarError):
        grammar.accept(ord("!"))


def test_there_is_no_white_space_between_values() -> None:
    def accepts(text: str) -> bool:
        grammar = BYTES.compile({"type": "object", "properties": {"a": {}}, "required": ["a"]})
        try:
            for byte in text.encode():
                grammar.accept(byte)
        except GrammarError:
            return False
        return True

    for compact in ('{"a":1}', '{"a":[1,"a b\\n"]}'):
        assert accepts(compact)
    for spaced in ('{"a": 1}', '{ "a":1}', '{\n"a":1}', '{"a":1, "b":2}', '{"a":1} '):
        assert not accepts(spaced)


def test_rows_of_one_grammar_go_their_own_ways() -> None:
    first = BYTES.compile({"enum": ["a", "b"]})
    second = first.fresh()
    for byte in b'"a"':
        first.accept(byte)
    first.finish()
    assert tokens_in(second.allowed()) == [ord('"')]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing satisfies it": ({"enum": []}, "Unsatisfiable"),
    "itself alone": ({"$ref": "#"}, "nothing satisfies it"),
    "a keyword that cannot be enforced": ({"type": "object", "not": {}}, "not"),
    "an unknown format": ({"type": "string", "format": "zzz"}, "zzz"),
    "another document": ({"$ref": "http://127.0.0.1/schema"}, "127.0.0.1"),
    "a broken pattern": ({"type": "string", "pattern": "("}, "unclosed group"),
    "an unknown type": ({"type": "colour"}, "colour"),
    "options of the compiler": ({"x-guidance": {"lenient": True}}, "x-guidance"),
    "too long": ({"enum": ["x" * MAX_SCHEMA_CHARACTERS]}, "characters"),
    "too many values": ({"enum": list(range(MAX_SCHEMA_VALUES))}, "values"),
    "too deep": (nested(MAX_SCHEMA_DEPTH + 1), "deeper"),
    "very much too deep": (nested(900), "deeper"),
    "a long pattern": ({"type": "string", "pattern": "a" * (MAX_PATTERN_CHARACTERS + 1)}, "pattern"),
    "repetitions of repetitions": ({"type": "string", "pattern": "(a{1000}){1000}"}, "repetitions"),
    "a huge repetition": ({"type": "string", "pattern": "a{99999999999999999999}"}, "repetitions"),
    "flags": ({"type": "string", "pattern": "(?x)a{ 1000000 }"}, "(?"),
    "a multiple of a large number": ({"type": "integer", "multipleOf": 9_999_991}, "'multipleOf': 9999991"),
    "of a number of many digits": ({"type": "number", "multipleOf": 123.45678}, "'multipleOf': 123.45678"),
    "of two numbers": ({"type": "integer", "allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "'multipleOf'"),
    "too many optional properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(600)}}, "items"),
    "repetitions of keys": ({"patternProperties": {"a{100000}": {}}}, "repetitions"),
}


def check_and_compile(schema: dict[str, Any]) -> None:
    """As is done with a client's schema, where it can be ended."""
    check_schema(schema)
    BYTES.compile(schema)


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(SchemaError, match=words.replace("(?", r"\(\?")) as caught:
        check_and_compile(schema)
    assert 0 < len(str(caught.value)) <= 200


def any_of(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


def chain(key: str, links: int, width: int) -> dict[str, Any]:
    links_of = {f"d{i}": {key: [{"$ref": f"#/$defs/d{i + 1}"}] * width} for i in range(links)}
    return {"$defs": {**links_of, f"d{links}": {"type": "object"}}, "allOf": [{"$ref": "#/$defs/d0"}]}


HOSTILE: dict[str, dict[str, Any]] = {
    "exponential alternatives": any_of(10),
    "references of references": chain("allOf", 24, 2),
    "alternatives of references": chain("anyOf", 8, 10),
    "intersections of patterns": {
        "allOf": [{"type": "string", "pattern": f".*{c}.*{c}.*{c}.*"} for c in "abcdefghijkl"]
    },
    "periods": {"allOf": [{"type": "string", "pattern": f"^(..{{{k}}})*$"} for k in (2, 3, 5, 7, 11, 13, 17, 19)]},
    "repetitions": {"type": "string", "pattern": "^(a{100}){100}$"},
    "optional repetitions": {"type": "string", "pattern": "^(([ab]{1,20}c?){1,20}d?){1,20}$"},
    "long enumeration": {"enum": [f"{'x' * 10}{i}" for i in range(3000)]},
    "multiples": {"type": "integer", "multipleOf": 7919, "minimum": 0, "maximum": 10**18},
    "long strings": {"type": "string", "minLength": 1_000_000},
    "many items": {"type": "array", "minItems": 1_000_000},
    "ambiguous": {"type": "array", "items": {"anyOf": [{"type": "array", "items": {"type": "string"}}] * 200}},
}  # fmt: skip


@pytest.mark.chance
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little_to_compile_and_to_follow(name: str) -> None:
    """In seconds of this process on the cores: what other programs take is not the schema's cost."""
    process = psutil.Process()
    before = process.memory_info().rss
    rng = np.random.default_rng(0)
    started = time.process_time()
    try:
        grammar = BYTES.compile(HOSTILE[name])
    except SchemaError:
        assert time.process_time() - started < 2
        return
    assert time.process_time() - started < 2
    slowest = 0.0
    for _ in range(100):
        started = time.process_time()
        allowed = tokens_in(grammar.allowed())
        slowest = max(slowest, time.process_time() - started)
        assert allowed
        if EOS in allowed:
            break
        try:
            grammar.accept(int(rng.choice(allowed)))
        except GrammarError:
            break
    assert slowest < 0.5
    assert process.memory_info().rss - before < 200e6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = "type properties items enum const anyOf allOf $ref pattern required minimum maxLength prefixItems format"
KEYWORDS = st.sampled_from(NAMES.split())


@given(st.dictionaries(KEYWORDS, JSON | st.sampled_from(["object", "string", "#", ["array"], "a{3}"]), max_size=4))
def test_any_json_object_is_a_grammar_or_a_schema_error(schema: dict[str, Any]) -> None:
    try:
        check_schema(schema)
        grammar = BYTES.compile(schema)
    except SchemaError:
        return
    assert tokens_in(grammar.allowed())
