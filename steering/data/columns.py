"""Columns of rows: the names that are meant, and what is wrong with a row, as one line with the way to mend it."""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from steering.errors import DataError

LOG = logging.getLogger(__name__)

SHOWN = 5  # names that a message lists

# What other tables call our columns. Never taken for them without being asked.
_OTHER_NAMES: Mapping[str, Collection[str]] = {
    "toxic": ("harmful", "unsafe", "bad", "attack", "rejected", "toxic_text", "toxic_prompt", "unsafe_prompt"),
    "safe": ("harmless", "benign", "good", "chosen", "safe_text", "safe_prompt", "benign_prompt"),
    "harmful": ("toxic", "unsafe", "bad"),
    "harmless": ("safe", "benign", "good"),
    "text": ("prompt", "question", "query", "instruction", "input", "goal", "message", "content"),
    "prompt": ("text", "question", "query", "instruction", "input", "user"),
    "response": ("answer", "completion", "output", "reply", "assistant", "generation"),
    "label": ("final_label", "verdict", "judgement", "class", "harmful", "is_harmful", "is_safe"),
    "image": ("picture", "pictures", "images", "img", "photo", "image_path", "image_file", "file_name", "filename"),
}
_PICTURE = re.compile(r"(?i).+\.(png|jpe?g|webp|gif|bmp|tiff?)")


def clear_names(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields by the names in `known` that they differ from only by case, spaces or hyphens."""
    meant = {_plain(name): name for name in known}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        clear = meant.get(_plain(name), name)
        taken = clear != name and (clear in fields or clear in found)
        found[name if taken else clear] = value
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip()).casefold()


def suggestion(name: str, known: Iterable[str], alike: float = 0.75) -> str | None:
    """The known name that was probably meant, if any."""
    choices = list(known)
    for ours in choices:
        if _plain(name) in _OTHER_NAMES.get(ours, ()):
            return ours
    near = difflib.get_close_matches(_plain(name), choices, n=1, cutoff=alike)
    return near[0] if near else None


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """Names with commas; of many the first, and how many more there are."""
    each = list(names)
    more = f" and {len(each) - shown} more" if len(each) > shown else ""
    return ", ".join(each[:shown]) + more


class Unused:
    """Columns that nobody reads. One that was probably meant for another is refused, the rest are told of once."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        self._name, self._known = name, known
        self._rows: Counter[str] = Counter()

    def without(self, where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are read. Raises DataError where another was probably meant for one that is not there."""
        for name in fields:
            if name in self._known:
                continue
            meant = suggestion(name, [known for known in self._known if known not in fields])
            if meant is None and isinstance(fields[name], str) and _PICTURE.fullmatch(fields[name]):
                meant = "image"
            if meant is not None:
                raise DataError(f"{where}: column {name!r}: did you mean {meant!r}? Rename it, or remove it")
            self._rows[name] += 1
        return {name: value for name, value in fields.items() if name in self._known}

    def tell(self) -> None:
        """Log which columns were not read."""
        if self._rows:
            LOG.warning("%s: columns that are not read: %s", self._name, listed(self._rows))


def missing(where: str, fields: Collection[str], needed: Iterable[Collection[str]]) -> DataError:
    """What a row of one of several shapes lacks: of the shape that it is nearest to."""
    shapes = [set(each) for each in needed]
    nearest = max(shapes, key=lambda shape: len(shape & {*fields}))
    lacking = sorted(nearest - {*fields})
    for lack in lacking:
        for name in fields:
            if name not in nearest and suggestion(name, lacking) == lack:
                return DataError(f"{where}: no {lack!r}, but {name!r}: did you mean {lack!r}? Rename that column")
    has = f"has {{{listed(sorted(fields))}}}"
    if nearest & {*fields}:
        return DataError(f"{where}: no {listed(map(repr, lacking))}, or it is empty; the row {has}")
    known = " or ".join("{" + ", ".join(sorted(shape)) + "}" for shape in shapes)
    return DataError(f"{where}: {has}, but needs {known}; in a table the first line names the columns")


_MUST: Mapping[str, str] = {
    "image": "must be a path, or a list of at most 16",
    "toxic_image": "must be a path, or a list of at most 16",
    "safe_image": "must be a path, or a list of at most 16",
    "answer": "must be text or a number, or a list of such",
    "choices": "must be a list of 2 to 26 texts",
}


def row_error(where: str, error: ValidationError) -> DataError:
    """The first thing that is wrong with a row, in words of its columns."""
    first = error.errors(include_url=False)[0]
    column = str(first["loc"][0]) if first["loc"] else "the row"
    return DataError(f"{where}: {column} {_must(column, first)}")


def _must(column: str, error: ErrorDetails) -> str:
    given = repr(error["input"])[:60]
    match error["type"]:
        case "missing":
            return "is missing"
        case "string_too_short":
            return "is empty: write the text, or remove the row"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
            near = suggestion(str(error["input"]), allowed, 0.6)
            return f"is {given}, and must be {' or '.join(allowed)}" + (f"; did you mean {near!r}?" if near else "")
    return f"{_MUST.get(column, 'must be text')}, not {given}"
