"""JSON schemas that answers follow: which are refused unread, and how one is compiled. Knows no torch.

What a schema costs cannot be told from its text alone. `check_schema` refuses what is known to be dear; the rest is
compiled where it can be ended, before anybody relies on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from math import isfinite, lcm
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from models.patterns import extent_of
from models.tidied import PATTERNS, tidied

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_CHARACTERS = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 8_192
MAX_PATTERN_CHARACTERS = 512
MAX_PATTERN_REPEATS = 10_000  # (a{1000}){1000} is written quickly and takes seconds and half a gigabyte
MAX_NESTED_REPEATS = 2_000  # with (a{90}){100} each token takes some milliseconds, for all rows of a batch
TRIED_TOKENS = 3  # of a text: much of what is too complex is so from its beginning on
MAX_DIVISOR = 10_000  # `multipleOf` is an automaton of as many states

# A tenth to a half of the library's own: a step of one row is part of the step of all others.
LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
# Without white space: any amount of it is valid JSON, and where a model falls into writing it, it never ends.
OPTIONS: JsonCompileOptions = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)")  # flags would change what a repetition looks like


class SchemaError(ValueError):
    """A schema that no grammar is made of; the message says why, for the client."""


def read_vocabulary(tokenizer: str, size: int, eos_ids: Collection[int]) -> LLTokenizer:
    """The vocabulary that grammars are made over, from a tokenizer's JSON. Raises SchemaError. Takes up to seconds."""
    try:
        return LLTokenizer(tokenizer, n_vocab=size, eos_token=sorted(eos_ids))
    except ValueError as error:
        raise SchemaError("no grammar can be made over this model's tokenizer") from error


def source_of(schema: Mapping[str, Any]) -> str:
    """A schema as the library's compiler reads it. Holds the GIL: for the largest schemas, 50 ms."""
    return LLMatcher.grammar_from_json_schema(json.dumps(tidied(schema)), overrides=OPTIONS)


def compile_source(vocabulary: LLTokenizer, source: str) -> LLMatcher:
    """What accepts the JSON texts that satisfy a schema. Raises SchemaError. Blocks, without the GIL.

    Without any limit of time and memory but those of `check_schema`, which is the caller's to ask first.
    """
    matcher = LLMatcher(vocabulary, source, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise SchemaError(reason_of(matcher, "it is too complex"))
    first = matcher.deep_copy()
    mask = first.compute_bitmask()  # the first takes the longest, and here it holds nobody up
    if first.is_error():
        raise SchemaError("nothing satisfies it")
    for _ in range(TRIED_TOKENS):
        if (token := _lowest(mask)) is None or not first.consume_token(token) or first.is_stopped():
            break
        mask = first.compute_bitmask()
    if first.is_error():
        raise SchemaError(reason_of(first, "it is too complex"))
    return matcher


def _lowest(mask: bytes) -> int | None:
    """The first token of a mask; None if it has none."""
    place = next((place for place, byte in enumerate(mask) if byte), None)
    return None if place is None else 8 * place + (mask[place] & -mask[place]).bit_length() - 1


def reason_of(matcher: LLMatcher, otherwise: str) -> str:
    """The library's words on a single line, where it has any."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:200] or otherwise


def check_size(schema: Mapping[str, Any]) -> None:
    """Raise SchemaError where a schema has too many values or characters. Fast, whatever the schema is."""
    for _ in _walk(schema):
        pass


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaError where a schema is too large or known to be dear, or sets options of the compiler."""
    for key, value in _walk(schema):
        _check_value(schema, key, value)
    if len(json.dumps(schema, ensure_ascii=False)) > MAX_SCHEMA_CHARACTERS:
        raise SchemaError(f"it has more than {MAX_SCHEMA_CHARACTERS} characters")
    if "x-guidance" in schema:
        raise SchemaError("'x-guidance' is not a keyword of JSON Schema")


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of a schema, with the key that it stands under. Raises SchemaError once they are too many."""
    waiting: list[tuple[int, str, Any]] = [(0, "", schema)]
    number = characters = 0
    while waiting:
        depth, key, value = waiting.pop()
        number += 1
        characters += len(key) + (len(value) if isinstance(value, str) else 1)
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(f"it is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        if characters > MAX_SCHEMA_CHARACTERS:
            raise SchemaError(f"it has more than {MAX_SCHEMA_CHARACTERS} characters")
        yield key, value
        if isinstance(value, (dict, list)) and number + len(waiting) + len(value) > MAX_SCHEMA_VALUES:
            raise SchemaError(f"it holds more than {MAX_SCHEMA_VALUES} values")
        if isinstance(value, dict):
            waiting += [(depth + 1, inner, each) for inner, each in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, "", each) for each in value]


def _check_value(schema: Mapping[str, Any], key: str, value: Any) -> None:  # noqa: ANN401  JSON of any shape
    patterns = [value] if key == "pattern" and isinstance(value, str) else []
    if key == "patternProperties" and isinstance(value, dict):
        patterns = [*value]
    for pattern in patterns:
        try:
            check_pattern(PATTERNS.get(pattern, pattern))
        except SchemaError as error:
            raise SchemaError(f"{error}: {pattern[:80]!r} in {_place_of(schema, value)}") from None
    if isinstance(value, dict):
        _check_divisor(value)


def _place_of(schema: Mapping[str, Any], wanted: object) -> str:
    """The keys that lead to a value of a schema."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), schema)]
    while waiting:
        place, value = waiting.pop()
        if value is wanted:
            return ".".join(place)[:200]
        if isinstance(value, dict):
            waiting += [((*place, str(key)), each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, str(number)), each) for number, each in enumerate(value)]
    raise AssertionError("the value is in the schema")


def _check_divisor(schema: Mapping[str, Any]) -> None:
    """A number that has to be a multiple is an automaton of as many states, of several of their common multiple."""
    together = 1
    for number in _divisors(schema):
        together = lcm(together, _states(number))
        if together > MAX_DIVISOR:
            raise SchemaError(
                f"'multipleOf': {str(number)[:40]}, with those beside it, has more than {MAX_DIVISOR} remainders; take "
                "a smaller or rounder number, or leave it out and check the answer"
            )


def _divisors(schema: Mapping[str, Any]) -> Iterator[float]:
    """The numbers that a value has to be a multiple of, also in combinations."""
    waiting: list[object] = [schema]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, dict):
            continue
        number = each.get("multipleOf")
        if isinstance(number, (int, float)) and not isinstance(number, bool) and isfinite(number) and number > 0:
            yield number
        for combination in ("allOf", "anyOf", "oneOf"):
            if isinstance(parts := each.get(combination), list):
                waiting += parts


def _states(number: float) -> int:
    """How many remainders an automaton tells apart. Final zeros are for nothing; trailing digits count as written."""
    text = str(number)
    digits = Fraction(text).numerator if "e" in text else int(text.replace(".", ""))
    while digits and digits % 10 == 0:
        digits //= 10
    return max(digits, 1)


def check_pattern(pattern: str) -> None:
    """Raise SchemaError for a pattern that no grammar is made of, or a dear one."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise SchemaError(f"a pattern has more than {MAX_PATTERN_CHARACTERS} characters")
    if _SPECIAL_GROUP.search(pattern):
        raise SchemaError("a pattern may hold groups '(...)' and '(?:...)', but no other '(?'")
    extent = extent_of(pattern)
    if extent.size > MAX_PATTERN_REPEATS:
        raise SchemaError(f"the repetitions of a pattern multiply to more than {MAX_PATTERN_REPEATS} characters")
    if extent.nested > MAX_NESTED_REPEATS:
        raise SchemaError(f"repetitions within repetitions of a pattern multiply to more than {MAX_NESTED_REPEATS}")
