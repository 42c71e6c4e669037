"""What is wrong with the rows of a fit: missing images, ids used twice, twins that do not differ, leaks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.fitting.items import Item

_FIXES = {
    "id": "give each row an id of its own, or leave the column out",
    "path": "paths of images are relative to their file, or to --images",
    "image": "save such images as PNG or JPEG",
    "twins": "twins must differ in their text or image",
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row. Errors stop a fit, warnings are reported."""

    where: str
    id: str
    what: str
    error: bool = True
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where} ({self.id}): {self.what}"


def check(items: Sequence[Item]) -> list[Problem]:
    """What is wrong row by row: missing images, duplicate ids, twins that do not differ."""
    problems = []
    times = Counter(item.id for item in items)
    for item in items:
        if times[item.id] > 1:
            told = f"the id is used {times[item.id]} times"
            problems.append(Problem(item.where, item.id, told, fix=_FIXES["id"]))
        files = sorted(item.files, key=lambda file: file.path)
        missing = [file for file in files if not file.exists]
        problems += [Problem(item.where, item.id, f"no image {file.path}", fix=_FIXES["path"]) for file in missing]
        damaged = [file for file in files if file not in missing and not file.readable]
        problems += [
            Problem(item.where, item.id, f"{file.path} cannot be read as an image", fix=_FIXES["image"])
            for file in damaged
        ]
        if item.toxic is not None and item.toxic == item.safe:
            problems.append(Problem(item.where, item.id, "toxic and safe are the same prompt", fix=_FIXES["twins"]))
    return problems


def leaks(parts: Mapping[Part, Sequence[Item]]) -> list[Problem]:
    """Rows that share an image with an earlier part, or ask near-same words without one.

    Near-same words about other images are one problem of a part: where the image tells what is asked, they are none.
    """
    images: dict[str, str] = {}
    words, captions = NearSame(), NearSame()
    problems = []
    for part, items in parts.items():
        captioned = []
        for item in items:
            found = [f"its image is also in {images[key]}" for key in sorted(image_keys(item) & images.keys())]
            near = {key: words.find(key) for key in sorted(word_keys(item))}
            found += [f"near-same words are also in {place}" for place in near.values() if place is not None]
            problems += [Problem(item.where, item.id, f"{part}: {what}", error=False) for what in found]
            if not found and (place := next(filter(None, map(captions.find, _captions(item))), None)):
                captioned.append((item, place))
        if captioned:
            first, place = captioned[0]
            more = f"; so for {len(captioned) - 1} more rows" if len(captioned) > 1 else ""
            what = f"{part}: near-same words about another image are also in {place}{more}"
            problems.append(Problem(first.where, first.id, what, error=False))
        for item in items:  # only now: within a part nothing leaks
            place = f"{part} ({item.where})"
            images.update(dict.fromkeys(image_keys(item), place))
            for key in word_keys(item):
                words.add(key, place)
            for key in _captions(item):
                captions.add(key, place)
    return problems


def image_keys(item: Item) -> set[str]:
    """Content hashes of an item's image files."""
    return {file.digest for file in item.files if file.exists}


def word_keys(item: Item) -> set[str]:
    """The words of an item's questions that show no image: what ties rows that have none."""
    return {_plain_words(side) for side in item.questions if not side.images}


def _captions(item: Item) -> set[str]:
    """The words of an item's questions that show images."""
    return {_plain_words(side) for side in item.questions if side.images}


def _plain_words(question: Question) -> str:
    """The words without case, punctuation and white space: near-same texts have the same ones."""
    return " ".join("".join(c if c.isalnum() else " " for c in question.text.lower()).split())


class NearSame:
    """Texts, found by others that have nearly the same words: four in five of those that either has."""

    def __init__(self, alike: float = 0.8) -> None:
        self._alike = alike
        self._places: dict[str, str] = {}
        self._texts: dict[str, list[str]] = defaultdict(list)  # by word

    def add(self, key: str, place: str) -> None:
        """Remember a text (its plain words), and where it stands."""
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
