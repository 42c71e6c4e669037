"""The process that compiles JSON schemas: what one costs is known only once it is compiled.

It reads the vocabulary once, and a copy of it compiles each schema, within limits of CPU time and of memory. Run as a
module, by `server.workers.schemas`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import partial
from time import process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from models.call_grammar import CallGrammar, described_calls
from models.narrowed import narrowed
from models.schema import SchemaError, check_schema, check_size, compile_source, read_vocabulary, source_of
from server.workers.copies import Copies
from server.workers.limits import limit_memory
from server.workers.memory import own_memory
from server.workers.process import be_modest, receive, send

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
        """The verdict as `read_verdict` takes it."""
        return _VERDICT.pack(self.kind, self.seconds, self.memory_bytes) + self.text.encode()


def read_verdict(data: bytes) -> Verdict:
    """Decode a verdict."""
    kind, seconds, memory_bytes = _VERDICT.unpack_from(data)
    return Verdict(Kind(kind), seconds, memory_bytes, data[_VERDICT.size :].decode())


Wanted = Mapping[str, Any] | CallGrammar  # a JSON schema, or the grammar of calls


def described(wanted: Wanted, longest: int | None) -> str:
    """What is wanted, as text. Raises SchemaError where it is large. Fast, whatever it is.

    `longest`: characters of strings that nothing bounds, in a schema that is made narrower; None: it is not.
    """
    if isinstance(wanted, CallGrammar):
        wanted.check_size()
        return json.dumps({"calls": wanted.described(), "longest": longest})
    check_size(wanted)
    return json.dumps({"schema": wanted, "longest": longest})


def _compiled(vocabulary: LLTokenizer, wanted: Wanted, longest: int | None) -> str:
    """What was compiled of it: narrower if that can be, looser if it must and may be. Raises SchemaError."""
    *tries, last = _tries(wanted, longest)
    for each in tries:
        with suppress(SchemaError):
            return _compiled_alone(vocabulary, each)
    return _compiled_alone(vocabulary, last)


def _tries(wanted: Wanted, longest: int | None) -> Iterator[Wanted]:
    if not isinstance(wanted, CallGrammar):
        if longest is not None:
            yield narrowed(wanted, longest)
        yield wanted
        return
    loose = wanted.loosened()
    for each in [wanted] if loose == wanted else [wanted, loose]:
        if longest is not None:
            yield each.narrowed(longest)
        yield each


def _compiled_alone(vocabulary: LLTokenizer, wanted: Wanted) -> str:
    if isinstance(wanted, CallGrammar):
        source = wanted.source()
    else:
        check_schema(wanted)
        source = source_of(wanted)
    compile_source(vocabulary, source)
    return source


def question(schema: bytes, seconds: float) -> bytes:
    """Encode what `described` made of a schema, and the CPU seconds that compiling it may take."""
    return _SECONDS.pack(seconds) + schema


def main() -> None:
    """The process: read the vocabulary, then have copies compile what is asked for until the other side has gone."""
    descriptor, memory_bytes = map(int, sys.argv[1:])
    be_modest()
    gone = suppress(EOFError, BrokenPipeError, ConnectionResetError)  # a server that ends as soon as it has begun
    with socket.socket(fileno=descriptor) as server, gone:
        if (vocabulary := _vocabulary(server)) is not None:
            Copies(server, partial(_answer, vocabulary, memory_bytes), _lost).run()


def _vocabulary(server: socket.socket) -> LLTokenizer | None:
    """The vocabulary that the other side sends; it is told why where no grammar can be made over it."""
    vocabulary, refusal = None, ""
    with server.makefile("rwb") as file:
        tokenizer, size, eos_ids = json.loads(bytes(receive(file)))
        try:
            vocabulary = read_vocabulary(tokenizer, size, eos_ids)
            compile_source(vocabulary, source_of({"type": "object"}))  # what is made once for all is in every copy
        except SchemaError as error:
            refusal = str(error)
        send(file, [refusal.encode()])
    return None if refusal else vocabulary


def _answer(vocabulary: LLTokenizer, memory_bytes: int, asked: memoryview) -> bytes:
    """In a copy, which this may end: what comes of a schema."""
    (seconds,) = _SECONDS.unpack_from(asked)
    schema = json.loads(bytes(asked[_SECONDS.size :]))
    _limit(seconds, memory_bytes)
    verdict = _verdict(vocabulary, schema).packed()
    signal.setitimer(signal.ITIMER_PROF, 0)  # or a part of it might be told
    return verdict


def _lost(ended_by: int | None) -> bytes:
    """What is told of a schema whose copy has ended without a word."""
    return Verdict(Kind.TOO_SLOW if ended_by == signal.SIGPROF else Kind.TOO_LARGE).packed()


def _limit(seconds: float, memory_bytes: int) -> None:
    """In the copy: a signal that ends it after so much CPU time, and so much memory above what it has.

    Where the system tells of no address space (macOS), the time alone bounds the memory.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # an allocation that fails is told there, and by the way it ends
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limit_memory(memory_bytes)


def _verdict(vocabulary: LLTokenizer, asked: Mapping[str, Any]) -> Verdict:
    memory, began = own_memory(), process_time()
    wanted = described_calls(asked["calls"]) if "calls" in asked else asked["schema"]
    try:
        source = _compiled(vocabulary, wanted, asked["longest"])
    except SchemaError as error:
        return Verdict(Kind.REFUSED, text=str(error))
    return Verdict(Kind.FINE, process_time() - began, max(0, own_memory() - memory), source)


if __name__ == "__main__":
    main()
