"""Grammars of requests in the engine's process: compiled beside the steps, the last ones kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cachetools import LRUCache

from models.grammar import GrammarCompiler, JsonGrammar
from models.schema import SchemaError
from server.engine.protocol import Effort
from server.request import Ask, GrammarFailed, Schema

KEPT_BYTES = 32 * 2**20  # of compiled schemas, by what compiling them took
LEAST_BYTES = 2**18  # that one counts for


class Grammars:
    """Makes grammars of schemas that the HTTP process has seen compiled within its limits. Thread-safe."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._lock = threading.Lock()
        self._kept: LRUCache[str, tuple[JsonGrammar, int]] = LRUCache(KEPT_BYTES, getsizeof=lambda kept: kept[1])

    def effort(self, asks: Sequence[Ask]) -> Effort:
        """How much there is to compile for these requests."""
        with self._lock:
            new = [ask.schema for ask in asks if ask.schema is not None and ask.schema.source not in self._kept]
        if not new:
            return Effort.NONE
        return Effort.LITTLE if all(schema.quick for schema in new) else Effort.MUCH

    def of(self, schema: Schema) -> JsonGrammar:
        """A row's own grammar. Blocks where it is not kept. Raises GrammarFailed."""
        with self._lock:
            kept = self._kept.get(schema.source)
        if kept is not None:
            return kept[0].fresh()
        try:
            grammar = self._compiler.compile_source(schema.source)
        except SchemaError as error:
            raise GrammarFailed(str(error)) from error
        size = min(max(schema.memory_bytes, LEAST_BYTES), KEPT_BYTES)
        with self._lock:
            self._kept[schema.source] = grammar, size
        return grammar.fresh()
