"""A suite: which sets are asked, how many tokens an answer may have, who judges. A YAML file, validated once.

Paths in a suite are relative to it. `load_suite` also knows the suites that come with this package by their names.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from models.demo.dialogue import HARM_KINDS, HarmKind
from steering.data.formats import FORMATS
from steering.data.questions import PictureFiles
from steering.errors import DataError
from steering.evaluation.demo_rows import demo_rows
from steering.evaluation.sets import Kind, Row, problems, read_set
from steering.evaluation.surroundings import CLEAN, OF_WORDS, SURROUNDINGS, known_surroundings
from steering.files import digest

BUNDLED = Path(__file__).parent / "suites"

FIX = "paths are relative to the file, or to the set's `images`; --drop-bad leaves such rows out"

T = TypeVar("T")

Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^/|=\s]+$")]
Count = Annotated[int, Field(ge=1)]
Eps = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FileSet(BaseModel, frozen=True, extra="forbid"):
    """Rows of a local file; `limit` takes a sample of that size, by the suite's seed."""

    name: Name
    kind: Kind
    format: str = "rows"
    path: Path
    images: Path | None = None
    text_only: bool = False  # without pictures
    test_only: bool = False  # the rows alone that their author keeps for testing
    limit: Count | None = None
    prompt: str = "{text}"
    max_tokens: Count | None = None

    @field_validator("format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"unknown format {value!r}; known are demo, {', '.join(FORMATS)}")
        return value

    @field_validator("prompt")
    @classmethod
    def _holds_text(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty")
        return value


class DemoSet(BaseModel, frozen=True, extra="forbid"):
    """Rows of the demo model's drawn world, of its test split: unseen scenes and phrasings."""

    name: Name
    kind: Kind
    format: Literal["demo"]
    harm: HarmKind | None = None
    count: Count
    seed: int = 0
    max_tokens: Count | None = None

    @model_validator(mode="after")
    def _has_harm(self) -> Self:
        if (self.harm is None) != (self.kind == "utility"):
            kinds = ", ".join(HARM_KINDS)
            raise ValueError(f"harm ({kinds}) is needed for harmful and harmless sets, and not for utility")
        return self


class JudgeSpec(BaseModel, frozen=True, extra="forbid"):
    """A judge model behind an OpenAI-compatible URL. The key is read from the environment variable `api_key_env`."""

    name: Name
    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    images: bool = False
    concurrency: Count = 8
    seconds: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 3


def _format_of(value: object) -> str:
    given = value.get("format") if isinstance(value, dict) else getattr(value, "format", None)
    return "demo" if given == "demo" else "file"


class Suite(BaseModel, frozen=True, extra="forbid"):
    """A whole suite."""

    name: Name
    about: str = ""
    seed: int = 0
    max_tokens: Count = 256
    judges: list[Literal["phrases", "demo"] | JudgeSpec] = ["phrases"]
    eps_sweep: list[Eps] = []
    surroundings: list[str] = []  # in which harmful and harmless rows are asked as well,
    surrounded_rows: Count = 50  # so many of each set
    sets: Annotated[list[FileSet | DemoSet], Field(min_length=1)]

    def in_surroundings(self, names: str | None) -> Suite:
        """The suite with these surroundings: "all", "words", "none", names with commas; None: its own.

        Raises DataError.
        """
        if names is None:
            return self
        wanted = {"all": list(SURROUNDINGS), "words": OF_WORDS, "none": []}.get(names, names.split(","))
        try:
            return self.model_copy(update={"surroundings": known_surroundings(wanted)})
        except ValueError as error:
            raise DataError(f"--surroundings: {error}") from error

    @field_validator("surroundings")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return known_surroundings(value)

    @field_validator("sets", mode="before")
    @classmethod
    def _by_format(cls, value: object) -> object:
        # Told apart by hand: a union would report what is wrong with both sides.
        if not isinstance(value, list):
            return value
        return [
            DemoSet.model_validate(each) if _format_of(each) == "demo" else FileSet.model_validate(each)
            for each in value
        ]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [name for name, times in Counter(each.name for each in self.sets).items() if times > 1]
        if twice:
            raise ValueError(f"the set name {twice[0]!r} is used twice")
        return self


def load_suite(name_or_path: str) -> tuple[Suite, Path]:
    """A suite and the folder that its paths are relative to. Raises DataError."""
    path = BUNDLED / f"{name_or_path}.yaml"
    if not path.is_file() or "/" in name_or_path:
        path = Path(name_or_path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in BUNDLED.glob("*.yaml")))
        raise DataError(f"cannot read the suite {path}: {error}; bundled suites: {known}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML: {error}") from error
    try:
        return Suite.model_validate(data), path.parent
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where}: {first['msg']}, not {str(first['input'])[:80]!r}") from error


# rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A row of a set, as it is asked."""

    set: str
    kind: Kind
    row: Row
    max_tokens: int
    surrounding: str = CLEAN

    @property
    def key(self) -> str:
        """Set and row, which no other row has."""
        return f"{self.set}/{self.row.id}"


@dataclass(frozen=True)
class Loaded:
    """All rows of a suite, and what was left out of its sets, row by row."""

    asked: list[Asked]
    dropped: Mapping[str, Mapping[str, str]]  # set -> where -> why

    @property
    def clean(self) -> Loaded:
        """The rows as their sets have them, in no surrounding."""
        return replace(self, asked=[each for each in self.asked if each.surrounding == CLEAN])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that is asked, in order."""
        rows = [(each.set, each.kind, each.max_tokens, each.row.digest()) for each in self.asked]
        return digest(repr(rows).encode())


def load_rows(suite: Suite, folder: Path, *, drop_bad: bool = False, limit: int | None = None) -> Loaded:
    """The rows of every set. Raises DataError where images are missing, unless such rows may be dropped.

    `limit`: at most so many rows of each set, for a quick look.
    """
    asked: list[Asked] = []
    dropped: dict[str, dict[str, str]] = {}
    files = PictureFiles()
    for each in suite.sets:
        rows = _file_rows(each, folder, files) if isinstance(each, FileSet) else _demo_rows(each)
        bad = problems(rows)
        if bad and not drop_bad:
            where, what = next(iter(bad.items()))
            more = f", and {len(bad) - 1} more rows" if len(bad) > 1 else ""
            raise DataError(f"set {each.name}: {where}: {what}{more}; {FIX}")
        dropped[each.name] = bad
        rows = [row for row in rows if row.where not in bad]
        wanted = [n for n in (limit, each.limit if isinstance(each, FileSet) else None) if n is not None]
        rows = _sample(rows, min(wanted), suite.seed) if wanted else rows
        if not rows:
            raise DataError(f"set {each.name}: no row is left")
        found = [Asked(each.name, each.kind, row, each.max_tokens or suite.max_tokens) for row in rows]
        if each.kind != "utility":
            chosen = _sample(found, suite.surrounded_rows, suite.seed)
            found += [
                _surrounded(one, name)
                for name in suite.surroundings
                for one in chosen
                if one.row.question.images or not SURROUNDINGS[name].of_pictures
            ]
        _check_ids(each.name, [one.row for one in found])
        asked += found
    return Loaded(asked, dropped)


def _surrounded(each: Asked, name: str) -> Asked:
    """A row in a surrounding. Its known answer is one there as well, where it is still what is asked for."""
    surrounding, row = SURROUNDINGS[name], each.row
    put = replace(
        row,
        id=surrounded_id(row.id, name),
        question=surrounding.put(row.question),
        key=row.key if surrounding.asks else None,
    )
    return replace(each, row=put, surrounding=name)


def _check_ids(name: str, rows: Sequence[Row]) -> None:
    twice = [id_ for id_, times in Counter(row.id for row in rows).items() if times > 1]
    if twice:
        raise DataError(f"set {name}: the id {twice[0]!r} is used by {Counter(r.id for r in rows)[twice[0]]} rows")


def surrounded_id(row: str, surrounding: str) -> str:
    """The id of a row in a surrounding."""
    return f"{row}@{surrounding}"


def _sample(rows: Sequence[T], size: int, seed: int) -> list[T]:
    """Some of the rows, in their order, the same ones for the same seed."""
    places = random.Random(seed).sample(range(len(rows)), min(size, len(rows)))  # noqa: S311
    return [rows[place] for place in sorted(places)]


def _file_rows(each: FileSet, folder: Path, files: PictureFiles) -> list[Row]:
    images = None if each.images is None else folder / each.images
    which = each.model_dump(include={"text_only", "test_only"})
    try:
        rows = read_set(folder / each.path, each.format, each.kind, images, files, **which)
    except DataError as error:
        raise DataError(f"set {each.name}: {error}") from error
    unknown = [row.where for row in rows if row.key is None]
    if each.kind == "utility" and unknown:
        lacks = f"a utility row needs a known answer, and format {each.format} has none"
        raise DataError(f"set {each.name}: {unknown[0]}: {lacks}")
    return [
        replace(row, question=replace(row.question, text=each.prompt.replace("{text}", row.question.text)))
        for row in rows
    ]


def _demo_rows(each: DemoSet) -> list[Row]:
    return demo_rows(each.name, each.kind, each.harm, each.count, each.seed)
