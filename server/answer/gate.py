"""Whether text may be shown yet: a gate holds it back until whoever reads the answer has cleared it."""

from __future__ import annotations

from typing import Protocol


class Gate(Protocol):
    """Stands between the stop scan and everything that is shown. It is called once for every token, in order."""

    def push(self, text: str) -> str:
        """Take the text that one more token made certain, often none; give what may be shown now."""

    def finish(self) -> str:
        """The rest that may be shown, after the last token."""


class OpenGate:
    """Holds nothing back: nobody reads the answer."""

    def push(self, text: str) -> str:
        """The text itself."""
        return text

    def finish(self) -> str:
        """Nothing was held."""
        return ""
