"""Forced calls of tools: a parser that turns the JSON of a call into its name and the pieces of its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from server.answer.delta import Delta, Kind
from server.answer.logprobs import Entry

# The grammar of a forced call allows no white space between its parts, and no other order of them.
_HEAD = re.compile(r'\{"name":("(?:[^"\\]|\\.)*"),"arguments":')


class CallOfOne:
    """A call of the one function that may be called: all text is its arguments."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name  # until it is told

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """A piece of the arguments, the name before the first."""
        piece = Delta(Kind.ARGUMENTS, text, entries)
        if self._name is None:
            return (piece,)
        name, self._name = self._name, None
        return (Delta(Kind.CALL, name), piece)

    def finish(self) -> Sequence[Delta]:
        """Nothing was held."""
        return ()


class CallOfSeveral:
    """A call of one of several functions: `{"name":...,"arguments":...}`, of which the last brace is no argument's."""

    def __init__(self) -> None:
        self._held = ""  # until the name is there: the text; after it, what may be the last brace
        self._begun = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """The name once it is complete, then the pieces of the arguments."""
        if self._begun:
            return self._arguments(text, entries)
        self._held += text
        head = _HEAD.match(self._held)
        if head is None:
            return ()
        self._begun = True
        rest, self._held = self._held[head.end() :], ""
        return [Delta(Kind.CALL, json.loads(head[1])), *self._arguments(rest, entries)]

    def finish(self) -> Sequence[Delta]:
        """Nothing of the arguments was held; a call that was cut before its name was none."""
        return ()

    def _arguments(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        end = self._end(text)
        return (Delta(Kind.ARGUMENTS, text[:end], entries),) if end else ()

    def _end(self, text: str) -> int:
        """How much of the text is of the arguments."""
        for place, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth < 0:
                    return place
        return len(text)
