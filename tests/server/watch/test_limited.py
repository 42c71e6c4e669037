"""Log lines that strangers cause are limited, and what is left out is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from server.watch.limited import LimitedLines


def lines_of(count: int, name: str = "uvicorn.error", line: int = 1) -> list[logging.LogRecord]:
    return [logging.LogRecord(name, logging.WARNING, "x.py", line, "Invalid.", None, None) for _ in range(count)]


def test_beyond_the_limit_lines_are_left_out_and_their_count_is_told(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    waiting: list[tuple[float, Callable[[], None]]] = []
    limited = LimitedLines(lines=3, clock=lambda: now, later=lambda *call: waiting.append(call))
    assert [limited.filter(each) for each in lines_of(1000)].count(True) == 3
    assert [limited.filter(each) for each in lines_of(4, line=2)].count(True) == 3  # each place by itself
    assert all(limited.filter(each) for each in lines_of(1000, "server.engine.client"))  # not what strangers cause
    now = 59.0
    assert not limited.filter(lines_of(1)[0])
    assert [seconds for seconds, _ in waiting] == [60.0, 60.0]
    for _, call in waiting:
        call()
    told = [record for record in caplog.records if record.name == "uvicorn.error"]
    assert [record.getMessage() for record in told] == [
        "998 more lines like the last of these were left out: Invalid.",
        "1 more lines like the last of these were left out: Invalid.",
    ]
    now = 60.0
    assert all(limited.filter(each) for each in [*told, *lines_of(3)])
    assert not limited.filter(lines_of(1)[0])
