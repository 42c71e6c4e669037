"""What an answer's text means: a parser turns text that may be shown into deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from server.answer.delta import Delta, Kind
from server.answer.logprobs import Entry

SEPARATOR = "\n\n"


class Parser(Protocol):
    """The last stage. It may hold text back until it is clear what it is a part of.

    `marks`: special tokens that are text to it, by their ids.
    """

    marks: Mapping[int, str]

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """The deltas that are certain after one more piece of text and the tokens that ended within it."""

    def finish(self) -> Sequence[Delta]:
        """The rest, after the last piece."""

    def apart(self) -> Sequence[Delta]:
        """What sets a text that follows apart from what has been given; what is held is not told any more."""


class PlainText:
    """Takes all text for what it is: the answer, or a refusal."""

    marks: Mapping[int, str] = MappingProxyType({})

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._said = False

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """The piece as a delta."""
        self._said = self._said or bool(text)
        return (Delta(self._kind, text, entries),)

    def finish(self) -> Sequence[Delta]:
        """No deltas: no text was held."""
        return ()

    def apart(self) -> Sequence[Delta]:
        """An empty line, if anything was said."""
        return (Delta(self._kind, SEPARATOR),) if self._said else ()
