"""What a guard is fitted on: contrast pairs and single prompts, read from files of `steering.data.formats`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steering.data.formats import PAIR_FIELDS, PROMPT_FIELDS, Example, read_examples
from steering.data.own_rows import Part
from steering.data.questions import PictureFile, PictureFiles, Question


@dataclass(frozen=True)
class Item:
    """A pair (`toxic` and `safe`), or a single prompt with one of them."""

    id: str
    toxic: Question | None
    safe: Question | None
    category: str = ""
    group: str | None = None
    split: Part | None = None
    where: str = ""  # file and line, for messages

    @property
    def questions(self) -> list[Question]:
        """Both sides, or the one there is."""
        return [side for side in (self.toxic, self.safe) if side is not None]

    @property
    def files(self) -> list[PictureFile]:
        """The image files of both sides, each once."""
        return list(dict.fromkeys(file for side in self.questions for file in side.files))


def read_pairs(path: Path, images: Path | None = None, files: PictureFiles | None = None) -> list[Item]:
    """Pairs of a file: ours, VLSafe's, ToViLaG's (toxic prompts alone), or a condition set. Raises DataError."""
    examples = read_examples(path, PAIR_FIELDS, images, files)
    return [_item(each, each.question(harmful=True), each.harmless) for each in examples]


def read_prompts(
    path: Path, images: Path | None = None, files: PictureFiles | None = None, *, toxic: bool = False
) -> list[Item]:
    """Single prompts of a file, harmless unless `toxic`. Raises DataError."""
    examples = read_examples(path, PROMPT_FIELDS, images, files)
    return [_item(each, *((each.prompt, None) if toxic else (None, each.prompt))) for each in examples]


def _item(example: Example, toxic: Question | None, safe: Question | None) -> Item:
    return Item(example.id, toxic, safe, example.category, example.group, example.split, example.where)
