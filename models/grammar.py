"""Grammars that a row's text has to follow, from JSON schemas, by llguidance. Bounded in time and memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from models.sampling import GrammarError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from tokenizers import Tokenizer

MAX_SCHEMA_CHARACTERS = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 8_192
MAX_PATTERN_CHARACTERS = 512
MAX_PATTERN_REPEATS = 10_000  # (a{1000}){1000} is written quickly and takes seconds and half a gigabyte

# A tenth to a half of the library's own: a step of one row is part of the step of all others.
_LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
# Any amount of white space is valid JSON, and where a model falls into writing it, it never ends: a space between two
# values, or a line break with its indentation.
_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r" |\n {0,32}", "lenient": False, "coerce_one_of": False}
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)")  # flags would change what a repetition looks like


class SchemaError(ValueError):
    """A schema that no grammar is made of; the message says why, for the client."""


class GrammarCompiler:
    """Makes grammars over one tokenizer. Thread-safe; the vocabulary is read when the first grammar is made."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Collection[int]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """A grammar of the JSON texts that satisfy a schema. Raises SchemaError. Blocks, without the GIL."""
        check_schema(schema)
        source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        matcher = LLMatcher(self._read_vocabulary(), source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise SchemaError(_reason(matcher, "it is too complex"))
        first = matcher.deep_copy()
        first.compute_bitmask()  # the first mask takes the longest, and here it holds nobody up
        if first.is_error():
            raise SchemaError("nothing satisfies it")
        return JsonGrammar(matcher)

    def _read_vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._read(copy(self._tokenizer.backend_tokenizer))
            return self._vocabulary

    def _read(self, backend: Tokenizer) -> LLTokenizer:
        backend.no_padding()
        backend.no_truncation()
        try:
            return LLTokenizer(backend.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_ids)
        except ValueError as error:
            raise SchemaError("no grammar can be made over this model's tokenizer") from error


class JsonGrammar:
    """One row's way through a grammar. Not thread-safe."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fresh(self) -> JsonGrammar:
        """The same grammar from the same place, for another row."""
        return JsonGrammar(self._matcher.deep_copy())

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit for each of the vocabulary. At a dead end, those that end the text."""
        return bytes(self._matcher.compute_bitmask())

    def accept(self, token: int) -> None:
        """Go on by a token. Raises GrammarError, also for a dead end that `allowed` came to."""
        if not self._matcher.consume_token(token):
            raise GrammarError(_reason(self._matcher, "it allows nothing more"))

    def finish(self) -> None:
        """The text ends here. Raises GrammarError if the grammar wants more of it."""
        if self._matcher.is_error() or not self._matcher.is_accepting():
            raise GrammarError(_reason(self._matcher, "the text is not complete"))


def _reason(matcher: LLMatcher, otherwise: str) -> str:
    """The library's words on a single line, where it has any."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:200] or otherwise


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise SchemaError where a schema is too large to be compiled, or sets options of the compiler."""
    for number, (depth, key, value) in enumerate(_walk(schema)):
        if number >= MAX_SCHEMA_VALUES:
            raise SchemaError(f"it holds more than {MAX_SCHEMA_VALUES} values")
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(f"it is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(pattern)
    if len(json.dumps(schema, ensure_ascii=False)) > MAX_SCHEMA_CHARACTERS:
        raise SchemaError(f"it has more than {MAX_SCHEMA_CHARACTERS} characters")
    if "x-guidance" in schema:
        raise SchemaError("'x-guidance' is not a keyword of JSON Schema")


def _walk(schema: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Every value of a schema, with its depth and the key that it stands under."""
    waiting: list[tuple[int, str, Any]] = [(0, "", schema)]
    while waiting:
        depth, key, value = waiting.pop()
        yield depth, key, value
        if isinstance(value, dict):
            waiting += [(depth + 1, inner, each) for inner, each in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, "", each) for each in value]


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise SchemaError(f"a pattern has more than {MAX_PATTERN_CHARACTERS} characters")
    if _SPECIAL_GROUP.search(pattern):
        raise SchemaError("a pattern may hold groups '(...)' and '(?:...)', but no other '(?'")
    repeats = 1
    for match in _REPEAT.finditer(pattern):
        # No product of short numbers is large enough to be slow; long ones are not even multiplied.
        bounds = [bound for bound in match.groups() if bound]
        repeats *= max([int(bound) if len(bound) <= 6 else MAX_PATTERN_REPEATS + 1 for bound in bounds] or [1]) or 1
        if repeats > MAX_PATTERN_REPEATS:
            raise SchemaError(f"the repetitions of a pattern multiply to more than {MAX_PATTERN_REPEATS}")
