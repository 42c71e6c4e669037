"""CSV as people save it: commas, semicolons or tabs, found from the first line; rows with the line they end on."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping

from steering.errors import DataError

DELIMITERS = ",;\t"
_OPEN = "is a quote left open? A text that holds a quote doubles it, and has quotes around it"


def read_sheet(text: str, name: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line and cells by column of each row that holds anything; empty cells are left out. Raises DataError.

    `name`: of the file, for messages.
    """
    text, delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        names = [column.strip() for column in next(reader, [])]
        twice = [column for column, times in Counter(filter(None, names)).items() if times > 1]
        if twice:
            raise DataError(f"{name}:1: two columns are named {twice[0]}: rename or remove one of them")
        for cells in reader:
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) > len(names):
                raise DataError(_ragged(f"{name}:{reader.line_num}", len(cells), len(names), delimiter))
            row = {column: cell for column, cell in zip(names, cells, strict=False) if cell.strip()}
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: {error}; {_OPEN}") from error


def _delimiter(text: str) -> tuple[str, str]:
    """The text, without a line that says `sep=;`, and what stands between its cells: what the first line has most."""
    first, _, rest = text.partition("\n")
    if len(directive := first.strip().strip('"')) == len("sep=;") and directive.lower().startswith("sep="):
        return rest, directive[-1]
    cells = {each: len(next(csv.reader([first], delimiter=each), [])) for each in DELIMITERS}
    return text, max(DELIMITERS, key=lambda each: cells[each])


def _ragged(where: str, cells: int, columns: int, delimiter: str) -> str:
    word = {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
    return f"{where}: {cells} cells under {columns} columns; put quotes around a text that holds a {word}"
