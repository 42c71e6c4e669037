"""What a row of our own formats may hold."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from steering.data.tables import Cell
from steering.labels import Label

Part = Literal["train", "validation", "calibration"]

MOST_CHOICES = len(string.ascii_uppercase)


def _as_text(value: object) -> object:
    """Numbers as text: ids and answers are often written as numbers."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]
Words = Annotated[str, Field(min_length=1)]
Images = Annotated[list[Cell], Field(max_length=16)] | Cell | None


class OwnRow(BaseModel):
    """What a row of any kind may say of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text | None = None
    category: Text = ""
    group: Text | None = None  # rows of one group are never split; default: by image and text
    split: Literal["train", "validation", "calibration", "test"] | None = (
        None  # test: never fitted on without being asked
    )


class PairRow(OwnRow):
    """A row of a file of pairs."""

    toxic: Words
    safe: Words
    image: Images = None  # of both sides
    toxic_image: Images = None
    safe_image: Images = None


class LabelRow(OwnRow):
    """A row of reviewers' labels: a prompt, and what they say of its verdict."""

    text: Words
    label: Label


class PromptRow(OwnRow):
    """A row of a file of single prompts."""

    text: Words
    image: Images = None
    modality: str | None = None
    answer: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    choices: Annotated[list[Text], Field(min_length=2, max_length=MOST_CHOICES)] | None = None
