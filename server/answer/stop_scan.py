"""The stop strings of an answer: the text ends in front of the first, and no part of one is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopScan:
    """Cuts at the stop string whose end comes first, and holds back what could become one.

    `push` every piece of the text, then `finish`; once `stopped`, both return nothing more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self.met is not None

    def push(self, text: str) -> str:
        """What is certain to be no part of a stop string, after one more piece."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.met = min(found)
            self._held = ""
            return text[:at]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, after the last piece."""
        text, self._held = self._held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
