"""`response_format`: any text, a JSON object, or JSON that satisfies a schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from server.api.fields import HintValue, Strict

SCHEMA_NAME = r"^[A-Za-z0-9_-]{1,64}$"


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object; one that satisfies a schema where a client of Hugging Face gives one as `value`."""

    type: Literal["json_object"]
    value: dict[str, JsonValue] | None = None


class JsonSchema(Strict):
    """A schema that the answer satisfies, whether or not `strict` is asked for."""

    name: Annotated[str, Field(pattern=SCHEMA_NAME)]
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None
    description: HintValue = None


class JsonSchemaFormat(Strict):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
