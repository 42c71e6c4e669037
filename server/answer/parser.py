"""What an answer's text means: a parser turns text that may be shown into deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.answer.delta import Delta, Kind
from server.answer.logprobs import Entry


class Parser(Protocol):
    """The last stage. It may hold text back until it is clear what it is a part of."""

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """The deltas that are certain after one more piece of text and the tokens that ended within it."""

    def finish(self) -> Sequence[Delta]:
        """The rest, after the last piece."""


class PlainText:
    """Takes all text for what it is: the answer, or a refusal."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:
        """The piece as a delta."""
        return (Delta(self._kind, text, entries),)

    def finish(self) -> Sequence[Delta]:
        """Nothing was held."""
        return ()
