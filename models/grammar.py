"""Grammars that a row's text has to follow, from JSON schemas, by llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from models.row_sampler import GrammarError
from models.schema import compile_source, read_vocabulary, reason_of, source_of


class GrammarCompiler:
    """Makes grammars over one tokenizer. Thread-safe; the vocabulary is read when the first grammar is made."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Collection[int]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """A grammar of the JSON texts that satisfy a schema of the caller's own. Raises SchemaError. Blocks."""
        return self.compile_source(source_of(schema))

    def compile_source(self, source: str) -> JsonGrammar:
        """A grammar of what `source_of` made of a schema. Blocks, without the GIL.

        Nothing ends it: for schemas that were checked and compiled within limits before, or that are the caller's own.
        """
        return JsonGrammar(compile_source(self._read_vocabulary(), source))

    def _read_vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = read_vocabulary(plain_json(self._tokenizer), self._vocab_size, self._eos_ids)
            return self._vocabulary


def plain_json(tokenizer: Any) -> str:  # noqa: ANN401  a fast tokenizer of transformers
    """A tokenizer as `read_vocabulary` takes it: without padding and truncation, and with no token that a text spells.

    Where a schema leaves one text alone, llguidance asks the tokenizer for the tokens of it, and words that spell an
    added token led nowhere: to a grammar that token is none of a text.
    """
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    state = json.loads(backend.to_str())
    model = state["model"]
    for token in state["added_tokens"]:
        content, token["content"] = token["content"], f"\ue0f3{token['id']}"
        if isinstance(vocabulary := model["vocab"], list):
            if token["id"] < len(vocabulary):
                vocabulary[token["id"]][0] = token["content"]
        elif vocabulary.pop(content, None) is not None:
            vocabulary[token["content"]] = token["id"]
        if model.get("unk_token") == content:
            model["unk_token"] = token["content"]
    return json.dumps(state)


class JsonGrammar:
    """A grammar, and how far one row has followed it. Not thread-safe."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fresh(self) -> JsonGrammar:
        """A copy for another row, which goes on from the same place."""
        return JsonGrammar(self._matcher.deep_copy())

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit for each of the vocabulary. At a dead end, those that end the text."""
        return bytes(self._matcher.compute_bitmask())

    def accept(self, token: int) -> None:
        """Go on by a token. Raises GrammarError, also for a dead end that `allowed` came to."""
        if not self._matcher.consume_token(token):
            raise GrammarError(reason_of(self._matcher, "it allows nothing more"))

    def finish(self) -> None:
        """The text ends here. Raises GrammarError if the grammar wants more of it."""
        if self._matcher.is_error() or not self._matcher.is_accepting():
            raise GrammarError(reason_of(self._matcher, "the text is not complete"))
