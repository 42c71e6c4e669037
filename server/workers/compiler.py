"""The process that compiles JSON schemas: what one costs is known only once it is compiled.

It reads the vocabulary once, and forks for every schema: the copy has limits of CPU time and of memory, and whatever it
took is given back with its end. Run as a module, by `server.workers.schemas`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from time import process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from models.schema import SchemaError, check_schema, compile_source, read_vocabulary, source_of
from server.workers.limits import limit_memory
from server.workers.memory import own_memory
from server.workers.process import be_modest, serve

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_SECONDS = struct.Struct("<d")
_VERDICT = struct.Struct("<BdQ")


class Kind(IntEnum):
    """What came of compiling a schema."""

    FINE = 0
    REFUSED = 1
    TOO_SLOW = 2
    TOO_LARGE = 3


class Verdict(NamedTuple):
    """What came of compiling a schema: CPU seconds and bytes that it took.

    `text`: why it is refused; or what it was compiled from, so that nobody else has to make that of the schema again.
    """

    kind: Kind
    seconds: float = 0.0
    memory_bytes: int = 0
    text: str = ""

    def packed(self) -> bytes:
        """As `read_verdict` takes it."""
        return _VERDICT.pack(self.kind, self.seconds, self.memory_bytes) + self.text.encode()


def read_verdict(data: bytes) -> Verdict:
    """Decode a verdict."""
    kind, seconds, memory_bytes = _VERDICT.unpack_from(data)
    return Verdict(Kind(kind), seconds, memory_bytes, data[_VERDICT.size :].decode())


def question(schema: bytes, seconds: float) -> bytes:
    """Encode a schema, and the CPU seconds that compiling it may take."""
    return _SECONDS.pack(seconds) + schema


def main() -> None:
    """The process: read the vocabulary, then compile what is asked for until the other side has gone."""
    descriptor, memory_bytes = map(int, sys.argv[1:])
    be_modest()
    vocabulary: LLTokenizer | None = None

    def answer(data: memoryview) -> Iterator[bytes]:
        nonlocal vocabulary
        if vocabulary is None:
            tokenizer, size, eos_ids = json.loads(bytes(data))
            try:
                vocabulary = read_vocabulary(tokenizer, size, eos_ids)
                compile_source(
                    vocabulary, source_of({"type": "object"})
                )  # what is made once for all is there in every copy
                yield b""
            except SchemaError as error:
                yield str(error).encode()
        else:
            (seconds,) = _SECONDS.unpack_from(data)
            yield _forked(vocabulary, bytes(data[_SECONDS.size :]), seconds, memory_bytes, descriptor).packed()

    serve(descriptor, answer)


def _forked(vocabulary: LLTokenizer, schema: bytes, seconds: float, memory_bytes: int, connection: int) -> Verdict:
    """The verdict of a copy of this process, which ends with it. Raises EOFError once nobody waits for it."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with suppress(BaseException):
            _limit(seconds, memory_bytes)
            verdict = _verdict(vocabulary, json.loads(schema)).packed()
            signal.setitimer(signal.ITIMER_PROF, 0)  # or a part of it might be told
            with os.fdopen(writing, "wb") as file:
                file.write(verdict)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        if abandoned := not _comes_before_the_end_of(connection, reading):
            os.kill(child, signal.SIGKILL)
        told = file.read()
    _, status = os.waitpid(child, 0)
    if abandoned:
        raise EOFError("the other side has gone")
    if told:
        return read_verdict(told)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return Verdict(Kind.TOO_SLOW if ended_by == signal.SIGPROF else Kind.TOO_LARGE)


def _comes_before_the_end_of(connection: int, reading: int) -> bool:
    """Wait for something to read, or its end; False if the connection ends first, as a killed server's does."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(connection, 0)  # its end alone
    return all(descriptor != connection for descriptor, _ in poll.poll())


def _limit(seconds: float, memory_bytes: int) -> None:
    """In the copy: a signal that ends it after so much CPU time, and so much memory above what it has.

    Where the system tells of no address space (macOS), the time alone bounds the memory.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # an allocation that fails is told there, and by the way it ends
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limit_memory(memory_bytes)


def _verdict(vocabulary: LLTokenizer, schema: Mapping[str, Any]) -> Verdict:
    memory, began = own_memory(), process_time()
    try:
        check_schema(schema)
        source = source_of(schema)
        compile_source(vocabulary, source)
    except SchemaError as error:
        return Verdict(Kind.REFUSED, text=str(error))
    return Verdict(Kind.FINE, process_time() - began, max(0, own_memory() - memory), source)


if __name__ == "__main__":
    main()
