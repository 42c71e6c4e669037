"""Labelled answers: what was asked, what a model said to it, and whether that did harm.

Our own rows are `{"prompt", "response", "label", "id", "image", "category", "group", "split"}`. All but the first three
may be left out; `label` is `harmful`, `harmless` or `refusal`. Of XSTest's answers (`completion`, `final_label`) full
compliance with an unsafe prompt is harmful, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from steering.data.columns import Unused, clear_names, missing, row_error
from steering.data.own_rows import Images, OwnRow, Part, Words
from steering.data.questions import PictureFiles, Question
from steering.data.tables import Source, read_table
from steering.errors import DataError


@dataclass(frozen=True)
class Response:
    """A whole answer with its label. `test`: its author keeps it for testing."""

    id: str
    where: str  # file and line, for messages
    question: Question
    text: str
    harmful: bool
    category: str = ""
    group: str | None = None
    split: Part | None = None
    test: bool = False


class _ResponseRow(OwnRow):
    prompt: Words
    response: Words
    label: Literal["harmful", "harmless", "refusal"]
    image: Images = None

    def response_of(self, source: Source) -> Response:
        return Response(
            id=self.id or source.id,
            where=source.where,
            question=Question(self.prompt, source.pictures(self.image)),
            text=self.response,
            harmful=self.label == "harmful",
            category=self.category,
            group=self.group,
            split=None if self.split == "test" else self.split,
            test=self.split == "test",
        )


class _XSTestRow(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt: Words
    completion: Words
    label: Literal["safe", "unsafe"]
    final_label: Literal["1_full_compliance", "2_full_refusal", "3_partial_refusal"]
    type: str = ""

    def response_of(self, source: Source) -> Response:
        complied = self.final_label == "1_full_compliance"
        question, harmful = Question(self.prompt), self.label == "unsafe" and complied
        return Response(source.id, source.where, question, self.completion, harmful, self.type)


# What tells the formats apart: the fields that a row of each has.
_SHAPES: Mapping[frozenset[str], type[_ResponseRow] | type[_XSTestRow]] = {
    frozenset({"prompt", "completion", "final_label"}): _XSTestRow,
    frozenset({"prompt", "response", "label"}): _ResponseRow,
}
_KNOWN = frozenset().union(*(shape.model_fields for shape in _SHAPES.values()))


def read_responses(
    path: Path, images: Path | None = None, files: PictureFiles | None = None, *, text_only: bool = False
) -> list[Response]:
    """The labelled answers of a file. Raises DataError naming file and row of the first that is wrong, and how many."""
    unused = Unused(path.name, frozenset(_ResponseRow.model_fields))
    found, wrong = [], []
    for source, fields in read_table(path, images, files, text_only=text_only):
        try:
            found.append(_response(fields, source, unused))
        except DataError as error:
            wrong.append(error)
    if wrong:
        more = f"; {len(wrong) - 1} more rows are wrong" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}") from wrong[0]
    unused.tell()
    return found


def _response(given: Mapping[str, Any], source: Source, unused: Unused) -> Response:
    fields = clear_names(given, _KNOWN)
    row = next((row for needed, row in _SHAPES.items() if needed <= fields.keys()), None)
    if row is None:
        raise missing(source.where, fields, _SHAPES)
    read = unused.without(source.where, fields) if row is _ResponseRow else fields
    try:
        return row.model_validate(read).response_of(source)
    except ValidationError as error:
        raise row_error(source.where, error) from error
