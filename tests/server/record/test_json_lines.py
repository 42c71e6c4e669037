"""The file of the audit log: whole lines whatever happens to the process or the disk."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.record.audit.json_lines import JsonLines, JsonLinesReader, parts
from server.record.audit.sink import Filter, SinkError
from tests.server.records import record

ALL = Filter(last=10**6)


@contextmanager
def opened(path: Path, *, max_bytes: int = 2**20, max_files: int = 3) -> Iterator[JsonLines]:
    lines = JsonLines(path, max_bytes=max_bytes, max_files=max_files)
    lines.open()
    try:
        yield lines
    finally:
        lines.close()


def ids(path: Path, wanted: Filter = ALL) -> list[str]:
    return [each["request_id"] for each in JsonLinesReader(path).read(wanted)]


def names(numbers: Sequence[int]) -> list[str]:
    return [f"req-{number}" for number in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_line_is_a_record(path: Path) -> None:
    with opened(path) as lines:
        lines.write([record(1, key="shop", score=0.25, content='["é\\n"]'), record(2)])
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["time"], first["outcome"]) == ("2026-01-02T03:04:00.000001+00:00", "completed")
    assert (first["key"], first["score"], first["content"], first["decision"]) == ("shop", 0.25, '["é\\n"]', None)
    assert path.stat().st_mode & 0o077 == 0


def test_what_was_there_stays(path: Path) -> None:
    for number in range(3):
        with opened(path) as lines:
            lines.write([record(number)])
    assert ids(path) == names(range(3))


def test_full_files_are_put_aside_and_the_oldest_deleted(path: Path) -> None:
    with opened(path, max_bytes=4096, max_files=3) as lines:
        for number in range(100):
            lines.write([record(number)])
    files = parts(path)
    assert [file.name for file in files] == ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]
    assert all(file.stat().st_size <= 4096 for file in files)
    kept = ids(path)
    assert kept == names(range(100 - len(kept), 100))
    assert len(kept) > 10
    with opened(path, max_bytes=4096, max_files=1) as lines:
        for number in range(100, 120):
            lines.write([record(number)])
    assert parts(path) == [path]


@given(cut=st.integers(0, 3000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_kill_cuts_the_file_the_rest_is_readable_and_the_next_record_too(path: Path, cut: int) -> None:
    path.unlink(missing_ok=True)
    with opened(path) as lines:
        lines.write([record(number) for number in range(5)])
    data = path.read_bytes()
    cut = min(cut, len(data))
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    assert ids(path) == names(range(whole))
    with opened(path) as lines:
        lines.write([record(99)])
    assert ids(path) == [*names(range(whole)), "req-99"]
    assert [json.loads(line)["request_id"] for line in path.read_bytes().splitlines()] == ids(path)


def test_a_torn_line_longer_than_a_block_is_cut_off(path: Path) -> None:
    with opened(path) as lines:
        lines.write([record(1)])
    with path.open("ab") as file:
        file.write(b'{"content":"' + b"x" * 200_000)
    with opened(path) as lines:
        lines.write([record(2)])
    assert ids(path) == names([1, 2])


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_stops_in_the_middle_leaves_nothing(path: Path) -> None:
    with opened(path) as lines:
        lines.write([record(1)])
        size = path.stat().st_size
        with file_size_limit(size + size // 2), pytest.raises(OSError, match="File too large"):
            lines.write([record(2)])
        assert path.stat().st_size == size
        lines.write([record(3)])
    assert ids(path) == names([1, 3])


def test_what_could_not_be_cut_off_at_once_is_cut_off_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with opened(path) as lines:
        lines.write([record(1)])
        size = path.stat().st_size
        with monkeypatch.context() as patch, file_size_limit(size + 10):
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(OSError, match="File too large"):
                lines.write([record(2)])
        assert path.stat().st_size == size + 10
        lines.write([record(3)])
    assert ids(path) == names([1, 3])


def test_a_full_disk() -> None:
    with opened(Path("/dev/full")) as lines, pytest.raises(OSError, match="No space left"):
        lines.write([record(1)])


def test_one_writer_at_a_time(path: Path) -> None:
    with opened(path), pytest.raises(OSError, match="another server writes to it"):
        JsonLines(path, max_bytes=4096, max_files=1).open()
    with opened(path):
        pass


@pytest.mark.parametrize("delete", [False, True])
def test_a_file_that_is_moved_or_deleted_is_begun_anew(path: Path, delete: bool) -> None:
    with opened(path) as lines:
        lines.write([record(1)])
        path.unlink() if delete else path.rename(path.with_suffix(".moved"))
        lines.write([record(2)])
    assert ids(path) == names([2])


def test_the_reader_filters_and_takes_the_last(path: Path) -> None:
    with opened(path) as lines:
        for number in range(10):
            lines.write([record(number, key="ab"[number % 2], decision="pass" if number < 5 else "steered")])
    assert ids(path, Filter(last=2)) == names([8, 9])
    assert ids(path, Filter(last=2, key="a")) == names([6, 8])
    assert ids(path, Filter(last=9, key="a", decision="pass")) == names([0, 2, 4])
    assert ids(path, Filter(last=9, outcome="failed")) == []
    with pytest.raises(SinkError, match="there is no audit log"):
        ids(path.with_name("none"))


def test_what_a_disk_has_damaged_hides_no_whole_record(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as lines:
        lines.write([record(number) for number in range(5)])
    first, second, third, fourth, last = path.read_bytes().splitlines(keepends=True)
    assert ids(path) == names(range(5))
    assert not caplog.records
    half = first[: len(first) // 2]
    path.write_bytes(
        first + b"\n" + second + half + b"\n" + bytes(512) + third + half + fourth + b"no record\n5\n" + last + half
    )
    assert ids(path) == names(range(5))
    assert [each.getMessage() for each in caplog.records] == [
        f"{path} holds 4 damaged lines; what was no whole record is left out"
    ]
    assert JsonLinesReader(path).usage()[None].requests == 5
