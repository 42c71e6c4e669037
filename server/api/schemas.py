"""The JSON schemas that answers are to satisfy: compiled before all else, and counted while their requests live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.call_grammar import CallGrammar
from models.schema import SchemaError
from server.errors import BadRequest, TooManyRequests
from server.request import Schema
from server.settings.schema import Settings
from server.settings.units import MEBI
from server.workers.lanes import Lane
from server.workers.schemas import SchemaCompiler, VocabularySource


@dataclass(frozen=True)
class WantedSchema:
    """A JSON schema that answers are to satisfy, or the grammar of calls, and the path of the field that has it."""

    schema: Mapping[str, Any] | CallGrammar
    param: str


def unusable(param: str, error: SchemaError) -> BadRequest:
    """What is told of a schema that no grammar is made of."""
    return BadRequest(f"Invalid value for '{param}': the schema cannot be used: {error}.", param=param)


class Schemas:
    """Compiles schemas, and bounds the memory that those of live requests take. For the event loop's thread."""

    def __init__(self, vocabulary: VocabularySource, settings: Settings) -> None:
        self._compiler = SchemaCompiler(
            vocabulary,
            seconds=settings.schema_seconds,
            memory_bytes=settings.schema_mib * MEBI,
            longest=settings.schema_string_characters or None,
        )
        self._limit = settings.schemas_mib * MEBI
        self._held = 0

    @property
    def lanes(self) -> Sequence[Lane]:
        """The threads that schemas wait for."""
        return self._compiler.lanes

    def start(self) -> None:
        """Start the process that compiles, beside all else."""
        self._compiler.start()

    async def compiled(self, wanted: WantedSchema, client: int | None = None) -> Schema:
        """A schema that the engine may compile too. Raises BadRequest, TooManyRequests, Unavailable.

        `client`: the number of who asks.
        """
        try:
            return replace(await self._compiler.check(wanted.schema, client), param=wanted.param)
        except SchemaError as error:
            raise unusable(wanted.param, error) from error

    def hold(self, schema: Schema, retry_after: int) -> None:
        """Count a live request's schema, until it is released. Raises TooManyRequests, and counts nothing."""
        if self._held and self._held + schema.memory_bytes > self._limit:
            raise TooManyRequests(
                f"The JSON schemas of live requests take {self._held >> 20} MiB of at most {self._limit >> 20} "
                f"(schemas_mib), and this one takes {schema.memory_bytes >> 20} more.",
                retry_after=retry_after,
            )
        self._held += schema.memory_bytes

    def release(self, schema: Schema) -> None:
        """A request whose schema was held has ended."""
        self._held -= schema.memory_bytes

    def close(self) -> None:
        """End the process that compiles."""
        self._compiler.close()
