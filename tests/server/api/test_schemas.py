"""Schemas of live requests: the memory that they take together is bounded, and given back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.grammar import plain_json
from server.api.schemas import Schemas, WantedSchema
from server.errors import BadRequest, TooManyRequests
from server.request import Schema
from server.settings.schema import Settings
from server.workers.schemas import VocabularySource
from tests.server.scripted import EOS, byte_tokenizer

MEBI = 2**20


@pytest.fixture
def schemas() -> Iterator[Schemas]:
    source = VocabularySource(plain_json(byte_tokenizer()), 258, {EOS})
    schemas = Schemas(source, Settings(schemas_mib=10, schema_seconds=20))
    yield schemas
    schemas.close()


def test_live_schemas_take_no_more_memory_than_the_setting_says(schemas: Schemas) -> None:
    large, small = Schema("a", memory_bytes=8 * MEBI), Schema("b", memory_bytes=MEBI)
    schemas.hold(large, 7)
    schemas.hold(small, 7)
    with pytest.raises(TooManyRequests, match="9 MiB of at most 10") as caught:
        schemas.hold(Schema("c", memory_bytes=3 * MEBI), 7)
    assert caught.value.headers == {"retry-after": "7"}
    schemas.release(large)
    schemas.hold(Schema("c", memory_bytes=3 * MEBI), 7)


def test_one_schema_is_taken_whatever_it_takes(schemas: Schemas) -> None:
    schemas.hold(Schema("larger than all together may be", memory_bytes=11 * MEBI), 7)
    with pytest.raises(TooManyRequests):
        schemas.hold(Schema("small", memory_bytes=MEBI), 7)


async def test_what_a_schema_takes_is_measured(schemas: Schemas) -> None:
    small = await schemas.compiled(WantedSchema({"type": "integer"}, "field"))
    large = await schemas.compiled(WantedSchema({"type": "integer", "multipleOf": 9973}, "field"))
    assert small.memory_bytes < MEBI < large.memory_bytes


async def test_a_refusal_names_the_field_and_the_reason(schemas: Schemas) -> None:
    with pytest.raises(BadRequest, match=r"Invalid value for 'field': the schema cannot be used: .*9999991") as caught:
        await schemas.compiled(WantedSchema({"type": "integer", "multipleOf": 9_999_991}, "field"))
    assert caught.value.param == "field"
