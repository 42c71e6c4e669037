"""The log-probabilities of an answer's tokens, given out in step with the text that the tokens are of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.answer.text_decoder import BROKEN, TextDecoder

if TYPE_CHECKING:
    from models.sampling import Logprobs


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of an answer. The bytes of all, put together, are those of the text."""

    data: bytes
    logprob: float
    top: Sequence[tuple[bytes, float]]  # the likeliest tokens, likeliest first


class LogprobsInStep:
    """Holds each token back until all of its text is shown.

    A token that a stop string cuts apart has the bytes that are shown. Special tokens have no text, and no entry.
    """

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._pending: deque[Entry] = deque()
        self._used = 0  # bytes of the first pending one that are shown
        self._begun = False

    def push(self, token: int, logprobs: Logprobs) -> None:
        """The answer's next token."""
        if token in self._decoder.special:
            return
        bytes_of = self._decoder.bytes_of
        top = [(bytes_of(other), log) for other, log in logprobs.top]
        self._pending.append(Entry(bytes_of(token), logprobs.token, top))

    def release(self, text: str) -> list[Entry]:
        """The tokens that end within this next piece of the text."""
        if not text:
            return []
        data, encoded = self._waiting(text), text.encode()
        if data.startswith(encoded):
            return self._take(len(encoded))
        at = 0
        for character in text:
            at += self._width(data, at, character)
        return self._take(at)

    def finish(self) -> list[Entry]:
        """What is shown of the token in which the text ends early."""
        if not self._used:
            return []
        cut = self._pending[0]
        return [Entry(cut.data[: self._used], cut.logprob, cut.top)]

    def _waiting(self, text: str) -> bytes:
        """The bytes that are not shown yet. Decoders of SentencePiece drop the space in front of the first word."""
        if not self._begun:
            self._begun = True
            first = self._pending[0] if self._pending else None
            if first is not None and first.data.startswith(b" ") and not text.startswith(" "):
                self._pending[0] = Entry(first.data[1:], first.logprob, first.top)
        return b"".join(entry.data for entry in self._pending)[self._used :]

    def _width(self, data: bytes, at: int, character: str) -> int:
        """How many bytes were decoded to this character."""
        encoded = character.encode()
        if data.startswith(encoded, at):
            return len(encoded)
        if character != BROKEN:
            return 0  # nothing of the tokens'
        if not self._decoder.vocabulary.byte_level:
            return 1  # byte tokens that do not fit together are each shown as broken
        try:
            data[at : at + 4].decode()
        except UnicodeDecodeError as error:
            return error.end if error.start == 0 else 0
        return 0

    def _take(self, count: int) -> list[Entry]:
        taken: list[Entry] = []
        self._used += count
        while self._pending and self._used >= len(self._pending[0].data):
            taken.append(self._pending.popleft())
            self._used -= len(taken[-1].data)
        return taken
