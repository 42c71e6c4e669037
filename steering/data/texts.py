"""Files of text as people save them: their encoding is found where it is clear, and named where it is not."""

from __future__ import annotations

import codecs
import logging
import re
from pathlib import Path

from steering.errors import DataError

LOG = logging.getLogger(__name__)

_MARKS = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BEGINNINGS = (
    (b"PK\x03\x04", "is an Excel workbook or another zip archive: save the sheet as CSV UTF-8, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as CSV UTF-8"),
    (b"\x1f\x8b", "is compressed: unpack it"),
    (b"PAR1", "is a Parquet file: give it the ending .parquet"),
    (b"\x89PNG", "is an image: give the file of rows that names it"),
    (b"\xff\xd8\xff", "is an image: give the file of rows that names it"),
    (b"version https://git-lfs", "is a pointer of Git LFS: fetch the file itself (git lfs pull)"),
)
_LOOKED_AT = 4096  # bytes that tell UTF-16 without a mark from what is no text
_WESTERN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŒœŠšŽžŸ")
_SIGNS = frozenset("€‚„…†‡‰‹›‘’“”•–—™¡¢£¥§©ª«¬®°±²³´µ¶·¹º»¼½¾¿×÷\xa0")
_MANY = 0.25  # share of letters beyond ASCII from which a text is not of a Western language
_LETTER = re.compile(r"[^\W\d_]")


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, what a byte order mark says, UTF-16, or Windows-1252. Raises DataError."""
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: give a file of rows (.jsonl, .json, .csv or .parquet)") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    for beginning, what in _BEGINNINGS:
        if data.startswith(beginning):
            raise DataError(f"{path} {what}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        # Marks also stand where files were joined.
        return data.decode(encoding).removeprefix("\ufeff").replace("\n\ufeff", "\n")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{path} is damaged: it begins as {encoding}, and is not: {error.reason}") from error
        return _western(path, data, error.start)


def _unmarked(data: bytes) -> str:
    """UTF-16 has a zero beside each letter of Western words; other text has no zeros."""
    even, odd = data[:_LOOKED_AT:2].count(0), data[1:_LOOKED_AT:2].count(0)
    if not even and not odd:
        return "utf-8"
    return "utf-16-le" if odd > even else "utf-16-be"


def _western(path: Path, data: bytes, at: int) -> str:
    """Text that is no UTF-8, as Windows-1252, where its words are of a Western language. Raises DataError.

    `at`: the first byte that is not UTF-8.
    """
    line = data.count(b"\n", 0, at) + 1
    fix = "save it as UTF-8 (Excel: CSV UTF-8)"
    if re.search(rb"[\xc3-\xf4][\x80-\xbf]", data[:at]):
        raise DataError(f"{path.name}:{line}: not UTF-8, while lines before it are; {fix}")
    text = data.decode("cp1252", errors="replace")
    foreign = [character for character in text if ord(character) >= 0x80]
    letters = [character for character in foreign if character not in _SIGNS]
    if not _WESTERN.issuperset(letters) or len(letters) > _MANY * len(_LETTER.findall(text)):
        raise DataError(f"{path.name}:{line}: neither UTF-8 nor the Windows-1252 of Western languages; {fix}")
    LOG.warning("%s is not UTF-8; it is read as Windows-1252", path)
    return text
