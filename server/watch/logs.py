"""The log on stderr: one line for each event, with the id of the request that it belongs to.

A line never holds what a client wrote: no content, no key, no path that is not a route's. Exceptions are told by their
types and places in the code, since their messages may quote what was being read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any

import orjson

from server.settings.schema import LogFormat
from server.watch.limited import LimitedLines

_request: ContextVar[tuple[str, str] | None] = ContextVar("request", default=None)  # each task's own, as its request is
ACCESS = logging.getLogger("server.access")
LIFE = logging.getLogger("server.life")  # what the server begins and ends: loading, reloads, draining
# C0, DEL, C1, and what some viewers take for the end of a line.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def configure(form: LogFormat, *, access: bool) -> None:
    """Everything that is logged in this process goes to stderr in this form; `access`: each request too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(LimitedLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for told in ("server.ready", LIFE.name):
        logging.getLogger(told).setLevel(logging.INFO)
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)


def adopt_libraries() -> None:
    """Take away the handlers that libraries have given their own loggers."""
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


@contextmanager
def request_id(identifier: str, record_id: str) -> Iterator[None]:
    """What is logged within belongs to a request; also what tasks log that are begun within.

    `record_id` tells it apart from another whose client has sent the same `identifier`.
    """
    token = _request.set((identifier, record_id))
    try:
        yield
    finally:
        _request.reset(token)


class JsonFormatter(logging.Formatter):
    """A line is a JSON object: `time`, `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _printable(_message(record)),
        }
        if (request := _request.get()) is not None:
            line["request_id"], line["record_id"] = request
        line |= {name: value for name, value in getattr(record, "fields", {}).items() if value is not None}
        if (error := _error(record)) is not None:
            line["exception"] = _frames(error)
        return orjson.dumps(line).decode()


class TextFormatter(logging.Formatter):
    """A line for people; control characters are escaped, so that nothing in it can begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line, and one more for each place that an exception passed."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(" ", "milliseconds")
        request = "" if (found := _request.get()) is None else f" [{_told(*found)}]"
        line = f"{when} {record.levelname} {record.name}{request}: {_message(record)}"
        error = _error(record)
        frames = [] if error is None else [f"    {frame}" for frame in _frames(error)]
        return "\n".join(_printable(each).translate(_ESCAPES) for each in [line, *frames])


def _told(identifier: str, record_id: str) -> str:
    return identifier if identifier.endswith(record_id) else f"{identifier} {record_id}"


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # asyncio puts an exception's own words on further lines, and beside the task that it ended.
    return message.partition("\n")[0] if record.name == "asyncio" else message


def _printable(text: str) -> str:
    """Without lone surrogates, which no UTF-8 has."""
    return text.encode("utf-8", "backslashreplace").decode()


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _frames(error: BaseException) -> list[str]:
    """The exception's type and where it passed, outermost first; then those of what caused it."""
    found: list[str] = []
    current: BaseException | None = error
    while current is not None and len(found) < 100:
        found.append(type(current).__qualname__)
        for frame, line in walk_tb(current.__traceback__):
            code = frame.f_code
            found.append(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{line} {code.co_name}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found
