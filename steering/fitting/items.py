"""What a guard is fitted on: contrast pairs and single prompts, read from files of `steering.data.formats`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from steering.data.formats import HARD_FIELDS, LABEL_FIELDS, PAIR_FIELDS, PROMPT_FIELDS, Example, read_examples
from steering.data.own_rows import Part
from steering.data.questions import PictureFile, PictureFiles, Question
from steering.errors import DataError

LOG = logging.getLogger(__name__)


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
    hard: bool = False  # its words look harmful, or harmless, and it is the other

    @property
    def questions(self) -> list[Question]:
        """Both sides, or the one there is."""
        return [side for side in (self.toxic, self.safe) if side is not None]

    @property
    def files(self) -> list[PictureFile]:
        """The image files of both sides, each once."""
        return list(dict.fromkeys(file for side in self.questions for file in side.files))


def read_pairs(
    path: Path,
    images: Path | None = None,
    files: PictureFiles | None = None,
    *,
    text_only: bool = False,
    with_test: bool = False,
) -> list[Item]:
    """Pairs of a file: ours, VLSafe's, ToViLaG's (toxic prompts alone), or a condition set. Raises DataError.

    `with_test`: also those that their author keeps for testing.
    """
    examples = _read(path, PAIR_FIELDS, images, files, text_only=text_only, with_test=with_test)
    return [_item(each, each.question(harmful=True), each.harmless) for each in examples]


def read_prompts(
    path: Path,
    images: Path | None = None,
    files: PictureFiles | None = None,
    *,
    toxic: bool = False,
    text_only: bool = False,
    with_test: bool = False,
) -> list[Item]:
    """Single prompts of a file, harmless unless `toxic`. Raises DataError.

    `with_test`: also those that their author keeps for testing.
    """
    examples = _read(path, PROMPT_FIELDS, images, files, text_only=text_only, with_test=with_test)
    return [_item(each, *((each.prompt, None) if toxic else (None, each.prompt))) for each in examples]


def read_hard(
    path: Path,
    images: Path | None = None,
    files: PictureFiles | None = None,
    *,
    text_only: bool = False,
    with_test: bool = False,
) -> list[Item]:
    """Hard negatives of a file: pairs, single prompts, which are harmless, or XSTest's rows. Raises DataError."""
    examples = _read(path, HARD_FIELDS, images, files, text_only=text_only, with_test=with_test)
    return [replace(_item(each, each.harmful, each.question(harmful=False)), hard=True) for each in examples]


def read_labels(path: Path, *, held_out: bool = False) -> list[Item]:
    """Prompts that reviewers labelled, those to fit on or those that are held out. Raises DataError.

    What a guard was wrong about, or right to flag, is hard; what it was right to pass is ordinary traffic.
    """
    found = [each for each in read_examples(path, LABEL_FIELDS) if each.test == held_out]
    return [replace(_item(each, each.harmful, each.harmless), hard=each.category != "rightly passed") for each in found]


def _read(
    path: Path,
    fields: Mapping[frozenset[str], str],
    images: Path | None,
    files: PictureFiles | None,
    *,
    text_only: bool,
    with_test: bool,
) -> list[Example]:
    """The rows to fit on; how many are kept for testing is told."""
    found = list(read_examples(path, fields, images, files, text_only=text_only))
    kept = [each for each in found if with_test or not each.test]
    if not kept:
        raise DataError(f"{path}: all {len(found)} rows are kept for testing; --with-test fits on them")
    if len(kept) < len(found):
        left = len(found) - len(kept)
        LOG.warning("%s: %d rows kept for testing are left out; --with-test fits on them too", path.name, left)
    return kept


def _item(example: Example, toxic: Question | None, safe: Question | None) -> Item:
    return Item(example.id, toxic, safe, example.category, example.group, example.split, example.where)
