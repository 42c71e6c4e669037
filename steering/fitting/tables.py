"""Rows of data files: JSONL, JSON, CSV and Parquet, each row with the place it stands in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

PARQUET_ROWS = 64  # read at a time: rows may hold images


class DataError(ValueError):
    """A data file cannot be used; the message names file and row."""


@dataclass(frozen=True)
class Source:
    """Where a row stands, and where its images are."""

    path: Path
    line: int
    images: Path | None

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path.name}:{self.line}"

    @property
    def id(self) -> str:
        """An id for a row that has none."""
        return f"{self.path.stem}-{self.line}"

    def pictures(self, named: Sequence[str] | str | None) -> tuple[Path, ...]:
        """Image paths, relative to the folder of images or to the file."""
        names = [named] if isinstance(named, str) else named or []
        return tuple((self.images or self.path.parent) / name for name in names)


def read_table(path: Path, images: Path | None = None) -> Iterator[tuple[Source, Mapping[str, Any]]]:
    """The rows of a file, by its ending, at least one. Raises DataError.

    A `.json` file is a list of rows, an object of such lists, or an object of rows by name.
    """
    rows = _READERS.get(path.suffix.lower(), _jsonl)
    found = False
    for line, row in rows(path):
        source = Source(path, line, images)
        if not isinstance(row, dict):
            raise DataError(f"{source.where}: a row must be an object, not {str(row)[:60]!r}")
        found = True
        yield source, row
    if not found:
        raise DataError(f"{path} holds no rows")


def first_error(where: str, error: ValidationError) -> DataError:
    """The first thing that is wrong with a row, as one line."""
    first = error.errors(include_url=False)[0]
    return DataError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}")


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line, f"{path.name}:{number}")


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    whole = _parsed(_text(path), path.name)
    parts = list(whole.values()) if isinstance(whole, dict) else [whole]
    if all(isinstance(part, dict) for part in parts):
        rows: list[Any] = parts
    elif all(isinstance(part, list) for part in parts):
        rows = [row for part in parts for row in part]
    else:
        raise DataError(f"{path.name}: neither a list of rows, nor an object of such lists or of rows")
    yield from enumerate(rows, start=1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path.name}:{reader.line_num}: another number of fields than the first line")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=PARQUET_ROWS)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".json": _json, ".csv": _csv, ".parquet": _parquet}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _parsed(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON: {error}") from error
