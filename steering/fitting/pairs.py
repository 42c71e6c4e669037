"""Contrast pairs and further prompts on disk: our schema, readers for public sets, checks before any model runs.

Our files are JSONL. A pair: `{"id", "toxic", "safe", "image" | "toxic_image" and "safe_image", "category", "group",
"split"}`; a single prompt: `{"id", "text", "image", "category", "group", "split"}`. All but the texts may be left out.
Image paths (one, or a list) are relative to the file, or to `images` where that is given.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steering.fitting.offline import Question
from steering.fitting.tables import DataError, Source, first_error, read_table

Part = Literal["train", "validation", "calibration"]
Images = Annotated[list[str], Field(max_length=16)] | str | None
Words = Annotated[str, Field(min_length=1)]


class FitError(ValueError):
    """The data cannot carry a guard; the message says what is missing."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    category: str = ""
    group: str | None = None  # rows of one group are never split; default: by image and text
    split: Part | None = None


class PairRow(_Row):
    """One line of a file of pairs."""

    toxic: Words
    safe: Words
    image: Images = None  # of both sides
    toxic_image: Images = None
    safe_image: Images = None


class PromptRow(_Row):
    """One line of a file of single prompts."""

    text: Words
    image: Images = None


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


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row. Errors stop a fit, warnings are reported."""

    where: str
    id: str
    what: str
    error: bool = True

    def __str__(self) -> str:
        return f"{self.where} ({self.id}): {self.what}"


# reading -----------------------------------------------------------------------------------------------------------


def read_pairs(path: Path, images: Path | None = None) -> list[Item]:
    """Pairs of a file: ours, VLSafe's, ToViLaG's (toxic prompts alone), or a condition set. Raises DataError."""
    return _read(path, images, _PAIR_FORMATS)


def read_prompts(path: Path, images: Path | None = None, *, toxic: bool = False) -> list[Item]:
    """Single prompts of a file, harmless unless `toxic`. Raises DataError."""
    reader = _toxic_prompt if toxic else _safe_prompt
    return _read(path, images, {frozenset({"text"}): reader})


Reader = Callable[[Mapping[str, Any], Source], Item]


def _own_pair(row: Mapping[str, Any], source: Source) -> Item:
    pair = PairRow.model_validate(row)
    if pair.image is not None and (pair.toxic_image is not None or pair.safe_image is not None):
        raise DataError(f"{source.where}: image is of both sides; give either it or toxic_image and safe_image")
    toxic = Question(pair.toxic, source.pictures(pair.image or pair.toxic_image))
    safe = Question(pair.safe, source.pictures(pair.image or pair.safe_image))
    return Item(pair.id or source.id, toxic, safe, pair.category, pair.group, pair.split, source.where)


def _safe_prompt(row: Mapping[str, Any], source: Source) -> Item:
    prompt = PromptRow.model_validate(row)
    question = Question(prompt.text, source.pictures(prompt.image))
    return Item(prompt.id or source.id, None, question, prompt.category, prompt.group, prompt.split, source.where)


def _toxic_prompt(row: Mapping[str, Any], source: Source) -> Item:
    item = _safe_prompt(row, source)
    return Item(item.id, item.safe, None, item.category, item.group, item.split, item.where)


def _vlsafe(row: Mapping[str, Any], source: Source) -> Item:
    """`orig_query` (or `query`) is the harmful one; the image is fetched apart from it, as a COCO file."""
    pictures = source.pictures(row["image_id"]) if source.images is not None else ()
    toxic = Question(row.get("orig_query") or row["query"], pictures)
    return Item(source.id, toxic, Question(row["safe_query"], pictures), "VLSafe", row["image_id"], None, source.where)


def _tovilag(row: Mapping[str, Any], source: Source) -> Item:
    toxic = Question(row["query"], source.pictures(row["image_pth"]))
    return Item(source.id, toxic, None, "ToViLaG", None, None, source.where)


def _condition(row: Mapping[str, Any], source: Source) -> Item:
    return Item(source.id, Question(row["harmful"]), Question(row["harmless"]), "condition", None, None, source.where)


# The first whose fields a row all has; its reader.
_PAIR_FORMATS: dict[frozenset[str], Reader] = {
    frozenset({"toxic", "safe"}): _own_pair,
    frozenset({"image_id", "safe_query", "orig_query"}): _vlsafe,
    frozenset({"image_id", "safe_query", "query"}): _vlsafe,
    frozenset({"query", "image_pth"}): _tovilag,
    frozenset({"harmful", "harmless"}): _condition,
}


def _read(path: Path, images: Path | None, formats: Mapping[frozenset[str], Reader]) -> list[Item]:
    items = []
    for source, row in read_table(path, images):
        reader = next((found for fields, found in formats.items() if fields <= row.keys()), None)
        if reader is None:
            known = " or ".join("{" + ", ".join(sorted(fields)) + "}" for fields in formats)
            raise DataError(f"{source.where}: has {{{', '.join(sorted(row))}}}, but needs {known}")
        try:
            items.append(reader(row, source))
        except ValidationError as error:
            raise first_error(source.where, error) from error
    return items


# checking ----------------------------------------------------------------------------------------------------------


def check(items: Sequence[Item]) -> list[Problem]:
    """What is wrong row by row: missing images, duplicate ids, twins that do not differ."""
    problems = []
    times = Counter(item.id for item in items)
    for item in items:
        if times[item.id] > 1:
            problems.append(Problem(item.where, item.id, f"the id is used {times[item.id]} times"))
        pictures = {image for side in item.questions for image in side.images if isinstance(image, Path)}
        missing = sorted(picture for picture in pictures if not picture.is_file())
        problems += [Problem(item.where, item.id, f"no image {picture}") for picture in missing]
        damaged = sorted(picture for picture in pictures.difference(missing) if not _is_image(picture))
        problems += [Problem(item.where, item.id, f"{picture} cannot be read as an image") for picture in damaged]
        if item.toxic is not None and item.toxic == item.safe:
            problems.append(Problem(item.where, item.id, "toxic and safe are the same prompt"))
    return problems


def _is_image(path: Path) -> bool:
    """Whether a file begins like an image; the rest is read when it is needed."""
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def words_key(text: str) -> str:
    """A text without case, punctuation and white space: near-same texts have the same key."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def image_keys(item: Item) -> set[str]:
    """Content hashes of an item's image files."""
    files = {image for side in item.questions for image in side.images if isinstance(image, Path)}
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def leaks(parts: Mapping[Part, Sequence[Item]]) -> list[Problem]:
    """Rows that share an image with an earlier part or ask near-same words."""
    images: dict[str, str] = {}
    words = NearSame()
    problems = []
    for part, items in parts.items():
        for item in items:
            found = [f"its image is also in {images[key]}" for key in sorted(image_keys(item) & images.keys())]
            near = {key: words.find(key) for key in sorted(map(_asked, item.questions))}
            found += [f"near-same words are also in {place}" for place in near.values() if place is not None]
            problems += [Problem(item.where, item.id, f"{part}: {what}", error=False) for what in found]
        for item in items:  # only now: within a part nothing leaks
            place = f"{part} ({item.where})"
            images.update(dict.fromkeys(image_keys(item), place))
            for key in map(_asked, item.questions):
                words.add(key, place)
    return problems


class NearSame:
    """Texts, found by others that have nearly the same words: four in five of those that either has."""

    def __init__(self, alike: float = 0.8) -> None:
        self._alike = alike
        self._places: dict[str, str] = {}
        self._texts: dict[str, list[str]] = defaultdict(list)  # by word

    def add(self, key: str, place: str) -> None:
        """Remember a text (its `words_key`), and where it stands."""
        if key not in self._places:
            for word in set(key.split()):
                self._texts[word].append(key)
        self._places[key] = place

    def find(self, key: str) -> str | None:
        """Where a near-same text stands, if there is one."""
        if key in self._places:
            return self._places[key]
        words = set(key.split())
        # Texts so alike have that many of these words, so one of the rarest few is among them.
        few = len(words) - math.ceil(self._alike * len(words)) + 1
        rarest = sorted(words, key=lambda word: (len(self._texts.get(word, ())), word))[:few]
        for text in dict.fromkeys(text for word in rarest for text in self._texts.get(word, ())):
            others = set(text.split())
            if len(words & others) >= self._alike * len(words | others):
                return self._places[text]
        return None


def _asked(question: Question) -> str:
    return words_key(question.text)


# splitting ---------------------------------------------------------------------------------------------------------


def split(items: Sequence[Item], *, seed: int = 0, held_out: float = 0.2) -> dict[Part, list[Item]]:
    """Divide items into parts by group; rows that name their split keep it.

    Of the rest, `held_out` go to validation and as many to calibration. A group is what the rows say, or what hangs
    together by an image or a near-same text. Where rows name `validation` but none `calibration`, half of the
    validation groups become the calibration part.
    """
    groups = _groups(items)
    shares: dict[Part, float] = {"validation": held_out, "calibration": held_out, "train": 1 - 2 * held_out}
    named = {item.split for item in items if item.split is not None}
    parts: dict[Part, list[Item]] = {"train": [], "validation": [], "calibration": []}
    for item, group in zip(items, groups, strict=True):
        at = _unit(seed, group)
        if item.split is None:
            part: Part = next(
                (p for p, edge in _edges(shares) if at < edge),
                "train",
            )
        elif item.split == "validation" and "calibration" not in named:
            part = "validation" if at < 0.5 else "calibration"
        else:
            part = item.split
        parts[part].append(item)
    return parts


def _edges(shares: Mapping[Part, float]) -> Iterator[tuple[Part, float]]:
    edge = 0.0
    for part, share in shares.items():
        edge += share
        yield part, edge


def _unit(seed: int, group: str) -> float:
    """A number in [0, 1) of a group, the same on every machine and whatever else is in the file."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:7]) / 2**56


def _groups(items: Sequence[Item]) -> list[str]:
    """The group of each item: its own name for it, else the first item that it hangs together with."""
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for place, item in enumerate(items):
        own = [f"group {item.group}"] if item.group is not None else [*image_keys(item), *map(_asked, item.questions)]
        for key in own:
            other = root(first.setdefault(key, place))
            parent[max(other, root(place))] = min(other, root(place))
    return [item.group or items[root(place)].id for place, item in enumerate(items)]
