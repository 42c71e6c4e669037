"""Whether text may be shown yet: a gate holds it back until whoever reads the answer has cleared it."""

from __future__ import annotations

import math
import re
from collections import deque
from typing import Protocol

from steering.policy import OutputPolicy
from steering.refusals import REFUSAL_TOKENS, begins_refusal

# A full stop may be one within a number: it ends a sentence with what follows it.
_SENTENCE_END = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019]*\s|[\n\u3002\uff01\uff1f]")
_CLOSERS = "\"')]\u201d\u2019"  # that may stand within it


class Gate(Protocol):
    """Stands between the stop scan and everything that is shown. It is called once for every token, in order.

    A token that comes says that all before it were read and not flagged.
    """

    @property
    def held(self) -> int:
        """Tokens whose text is held back."""

    def push(self, text: str) -> str:
        """Take the text that one more token made certain, often none; give what may be shown now."""

    def finish(self) -> str:
        """The rest that may be shown, once the last token has been cleared too."""


class OpenGate:
    """Holds nothing back."""

    held = 0

    def push(self, text: str) -> str:
        """The text itself: nothing is held back."""
        return text

    def finish(self) -> str:
        """No text: nothing was held back."""
        return ""


class TokenGate:
    """Shows the text of a token once `hold` more have come: the reader has seen it then, and those between."""

    def __init__(self, hold: float) -> None:
        assert hold > 0, "a gate that holds nothing is open"
        self._hold = hold
        self._texts: deque[str] = deque()

    @property
    def held(self) -> int:
        """Tokens whose text is held back."""
        return len(self._texts)

    def push(self, text: str) -> str:
        """Take the text of one more token; give that of tokens which `hold` later ones have cleared."""
        self._texts.append(text)
        return self._texts.popleft() if len(self._texts) > self._hold else ""

    def finish(self) -> str:
        """All text that is held back: the last token has been cleared."""
        text = "".join(self._texts)
        self._texts.clear()
        return text


class SentenceGate:
    """Shows a sentence once it is over and the reader has seen all of it."""

    def __init__(self) -> None:
        self._read = ""  # text of tokens that the reader has seen
        self._searched = 0  # characters of it in which no sentence ends, whatever follows
        self._new = ""  # of the last token
        self._lengths: deque[int] = deque()  # characters of each token that are not shown

    @property
    def held(self) -> int:
        """Tokens whose text is held back."""
        return len(self._lengths)

    def push(self, text: str) -> str:
        """Take the text of one more token; give the sentences that are over and cleared."""
        self._read += self._new
        self._new = text
        self._lengths.append(len(text))
        ends = (match.end() for match in _SENTENCE_END.finditer(self._read, self._searched))
        end = max(ends, default=0)
        shown, self._read = self._read[:end], self._read[end:]
        self._searched = max(0, len(self._read.rstrip(_CLOSERS)) - 1)  # the last may be the full stop
        self._count(end)
        return shown

    def finish(self) -> str:
        """All text that is held back: the last token has been cleared."""
        text, self._read, self._new = self._read + self._new, "", ""
        self._lengths.clear()
        return text

    def _count(self, characters: int) -> None:
        """So many more are shown; a token that is shown in part counts as held."""
        while characters and self._lengths:
            if self._lengths[0] > characters:
                self._lengths[0] -= characters
                return
            characters -= self._lengths.popleft()


class RefusalGate:
    """Holds what is to be a refusal back until it has begun as one, and then as the gate within does.

    `refusal`: a text that it may begin like.
    """

    def __init__(self, gate: Gate, refusal: str) -> None:
        self._gate = gate
        self._refusal = refusal
        self._tokens = 0
        self._text = ""  # until it has begun
        self._passed = ""  # what the gate within let through meanwhile
        self.begun = False

    @property
    def failed(self) -> bool:
        """Whether so much has come that it will not be a refusal."""
        return not self.begun and self._tokens >= REFUSAL_TOKENS

    @property
    def held(self) -> int:
        """Tokens whose text is held back."""
        return self._gate.held if self.begun else self._tokens

    def push(self, text: str) -> str:
        """Take the text of one more token; give what may be shown once a refusal has begun."""
        passed = self._gate.push(text)
        if self.begun:
            return passed
        self._tokens += 1
        self._text += text
        self._passed += passed
        self.begun = begins_refusal(self._text, self._refusal)
        return self._passed if self.begun else ""

    def finish(self) -> str:
        """The rest of a refusal that has begun; nothing of what has not."""
        return self._gate.finish() if self.begun else ""


def gate_of(output: OutputPolicy) -> Gate:
    """The gate that a policy puts before an answer."""
    match output.hold:
        case "all":
            return TokenGate(math.inf)
        case "sentence":
            return SentenceGate()
        case 0:
            return OpenGate()
    return TokenGate(output.hold)
