"""Rows of data files: JSONL, JSON, CSV and Parquet, each row with the place it stands in.

What says nothing is left out of a row: null values, empty cells of a CSV, and columns of row numbers, which pandas
writes without a name, as `Unnamed: 0` or as `__index_level_0__`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from steering.data.questions import PictureFile, PictureFiles
from steering.data.sheets import read_sheet
from steering.data.texts import read_text
from steering.errors import DataError

PARQUET_ROWS = 64  # read at a time: rows may hold images

_ROW_NUMBERS = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")

_Record = tuple[int, str, Any]  # line, name of the list, row

Cell = str | Mapping[str, Any]  # an image: its path, or {"bytes", "path"} as in Parquet files


@dataclass(frozen=True)
class Source:
    """Where a row stands, and where its images are."""

    path: Path
    line: int
    images: Path | None = None
    files: PictureFiles = field(default_factory=PictureFiles)
    part: str = ""  # the name of the list in a `.json` file that has several
    text_only: bool = False  # pictures are left out

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path.name}:{self.line}"

    @property
    def id(self) -> str:
        """An id for a row that has none."""
        return f"{self.path.stem}-{self.line}"

    def pictures(self, named: Sequence[Cell] | Cell | None) -> tuple[PictureFile | bytes, ...]:
        """The images of a cell: none, one, or a list; none where only texts are wanted. Raises DataError."""
        if self.text_only:
            return ()
        cells = named if isinstance(named, Sequence) and not isinstance(named, str) else [named]
        return tuple(self.picture(cell) for cell in cells if cell not in (None, ""))

    def picture(self, cell: object) -> PictureFile | bytes:
        """One image: the bytes in the row, or a path relative to the folder of images or to the file."""
        match cell:
            case str(name) if name:
                return self.files[_found(self.images or self.path.parent, name)]
            case {"bytes": bytes(data)}:
                return data
            case {"path": str(name)} if name:
                return self.picture(name)
        raise DataError(f"{self.where}: an image must be a path, or an object of bytes or path, not {str(cell)[:60]!r}")


def _found(folder: Path, name: str) -> Path:
    """The path of an image. One of Windows is read as it is meant; of a drive's, its name is looked for in it."""
    if "\\" not in name or (folder / name).exists():
        return folder / name
    path = PureWindowsPath(name)
    return folder / (path.name if path.drive or path.root else path.as_posix())


def read_table(
    path: Path, images: Path | None = None, files: PictureFiles | None = None, *, text_only: bool = False
) -> Iterator[tuple[Source, Mapping[str, Any]]]:
    """The rows of a file, by its ending, at least one. Raises DataError.

    A `.json` file is a list of rows, an object of such lists, or an object of rows by name. `files`: the image files
    that are known already. `text_only`: without pictures.
    """
    files = PictureFiles() if files is None else files
    found = False
    for line, part, row in _READERS.get(path.suffix.lower(), _jsonl)(path):
        source = Source(path, line, images, files, part, text_only)
        if not isinstance(row, dict):
            raise DataError(f"{source.where}: a row must be an object, not {str(row)[:60]!r}")
        found = True
        yield source, {name: value for name, value in row.items() if value is not None and not _numbers(name)}
    if not found:
        raise DataError(f"{path} holds no rows")


def _numbers(name: str) -> bool:
    """Whether a column is one of row numbers."""
    return _ROW_NUMBERS.fullmatch(name) is not None


def _jsonl(path: Path) -> Iterator[_Record]:
    text = read_text(path)
    if text.lstrip().startswith("[") and (whole := _whole(text)) is not None:
        yield from _listed(whole, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, "", _parsed(line, f"{path.name}:{number}")


def _json(path: Path) -> Iterator[_Record]:
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    if _whole(text) is None and isinstance(_whole(first), dict):
        yield from _jsonl(path)  # lines of JSON, under the other name
    elif text.strip():
        yield from _listed(_parsed(text, path.name), path)


def _listed(whole: Any, path: Path) -> Iterator[_Record]:  # noqa: ANN401
    parts: dict[str, Any] = whole if isinstance(whole, dict) else {"": whole}
    if all(isinstance(part, dict) for part in parts.values()):
        rows: list[tuple[str, Any]] = [("", part) for part in parts.values()]
    elif all(isinstance(part, list) for part in parts.values()):
        rows = [(name, row) for name, part in parts.items() for row in part]
    else:
        raise DataError(f"{path.name}: neither a list of rows, nor an object of such lists or of rows")
    yield from ((number, name, row) for number, (name, row) in enumerate(rows, start=1))


def _csv(path: Path) -> Iterator[_Record]:
    yield from ((line, "", row) for line, row in read_sheet(read_text(path), path.name))


def _parquet(path: Path) -> Iterator[_Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=PARQUET_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((number, "", row) for number, row in enumerate(rows, start=1))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


_READERS: dict[str, Callable[[Path], Iterator[_Record]]] = {
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _whole(text: str) -> Any:  # noqa: ANN401
    """What a text of JSON holds; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _parsed(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        other = "" if text.lstrip().startswith(("{", "[")) else "; a table of cells has the ending .csv or .tsv"
        raise DataError(f"{where}: no JSON: {error}{other}") from error
