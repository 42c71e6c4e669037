"""Rows of an evaluation set: prompts of one kind, of a file in a format of `steering.data.formats`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from steering.data.formats import Example, read_examples
from steering.data.questions import PictureFiles, Question
from steering.errors import DataError
from steering.evaluation.answers import Key, with_choices
from steering.files import digest

Kind = Literal["harmful", "harmless", "utility"]


@dataclass(frozen=True)
class Row:
    """One prompt of a set. `key` is what a right answer is, where that is known."""

    id: str
    question: Question
    category: str = ""
    modality: str = "text"
    key: Key | None = None
    where: str = ""  # file and line, for messages

    def digest(self) -> str:
        """SHA-256 of everything that an answer or its mark depends on. Raises OSError."""
        images = list(self.question.digests)
        asked = self.question.transcript
        return digest(repr((self.id, asked, images, self.category, self.modality, self.key)).encode())


def read_set(
    path: Path,
    name: str,
    kind: Kind,
    images: Path | None = None,
    files: PictureFiles | None = None,
    *,
    text_only: bool = False,
    test_only: bool = False,
) -> list[Row]:
    """The rows of one kind of a file in a format of `FORMATS`. Raises DataError naming file and row.

    `text_only`: without pictures. `test_only`: those alone that their author keeps for testing.
    """
    rows = [
        _row(example, question)
        for example in read_examples(path, name, images, files, text_only=text_only)
        if (example.test or not test_only) and (question := example.question(harmful=kind == "harmful")) is not None
    ]
    if not rows:
        kept = ", and none in a list or split `test`" if test_only else ""
        raise DataError(f"{path} holds no {kind} rows of format {name}{kept}")
    return rows


def _row(example: Example, question: Question) -> Row:
    try:
        key = _key(example)
    except ValueError as error:
        raise DataError(f"{example.where}: {error}") from error
    return Row(
        id=example.id,
        question=replace(question, text=with_choices(question.text, key.choices)) if key and key.choices else question,
        category=example.category,
        modality=example.modality or ("image" if question.images else "text"),
        key=key,
        where=example.where,
    )


def _key(example: Example) -> Key | None:
    """The known answer. Raises ValueError where it is not a letter of the choices."""
    if not example.answers:
        return None
    return Key(example.answers, "choice" if example.choices else "short", example.choices)


def problems(rows: Sequence[Row]) -> dict[str, str]:
    """What is wrong, by `where`: images that are missing or cannot be read."""
    found = {}
    for row in rows:
        missing = next((file for file in row.question.files if not file.exists), None)
        if missing is not None:
            found[row.where] = f"no image {missing.path}"
            continue
        try:
            row.question.pictures()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            found[row.where] = f"an image cannot be read: {error}"
    return found
