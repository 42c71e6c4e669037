"""Calls of functions within an answer: a parser of the text that `models.call_grammar` allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from models.call_grammar import CallGrammar
from models.calls import BLANK
from server.answer.delta import Delta, Kind
from server.answer.logprobs import Entry
from server.answer.parser import SEPARATOR
from server.answer.stop_scan import overlap


class Calls:
    """Text, then the names and the arguments of calls; of what a syntax writes around them nothing is told.

    Text is held while it may become a call, or the white space before one. Log-probabilities are not told.
    """

    def __init__(self, grammar: CallGrammar) -> None:
        syntax, names = grammar.syntax, grammar.functions
        self.marks: Mapping[int, str] = {token: text for text, token in syntax.marks.items()}
        self._forced = grammar.forced
        whole = grammar.forced or grammar.answer is not None  # a call, if any, begins the answer
        at_once = [trigger for trigger in syntax.triggers if whole or not trigger]
        self._triggers = [trigger for trigger in syntax.triggers if trigger not in at_once]
        self._begin = {trigger + syntax.first(name): name for trigger in at_once for name in names}
        self._first = {syntax.first(name): name for name in names}
        self._further = {} if syntax.between is None else {syntax.further(name): name for name in names}
        self._expected = self._first  # what stands before the next arguments
        self._read: Callable[[], Sequence[Delta] | None] = self._read_text
        self._held = ""
        self._said = False
        self._extent = JsonExtent()

    def push(self, text: str, entries: Sequence[Entry]) -> Sequence[Delta]:  # noqa: ARG002  see above
        """What is certain after one more piece."""
        self._held += text
        deltas: list[Delta] = []
        while (found := self._read()) is not None:
            deltas += found
        return deltas

    def finish(self) -> Sequence[Delta]:
        """Text that did not become a call. A call that was cut before its name is none."""
        text, self._held = self._held, ""
        return self._say(text) if self._in_text and not self._forced else ()

    def apart(self) -> Sequence[Delta]:
        """An empty line where text was said; none within a call, which has no place for it."""
        return (Delta(Kind.TEXT, SEPARATOR),) if self._said and self._in_text else ()

    @property
    def _in_text(self) -> bool:
        return self._read == self._read_text

    # Each gives what it has read and may be asked again; None: it needs more.

    def _read_text(self) -> Sequence[Delta] | None:
        if self._begin:
            begun = self._held.lstrip(BLANK)
            if any(begun.startswith(head) for head in self._begin):
                self._held, self._expected = begun, self._begin
                self._read = self._read_head
                return ()
            if any(head.startswith(begun) for head in self._begin):
                return None
            self._begin = {}
        found = [(at, trigger) for trigger in self._triggers if (at := self._held.find(trigger)) >= 0]
        if found:
            at, trigger = min(found)
            text, self._held = self._held[:at].rstrip(BLANK), self._held[at + len(trigger) :]
            self._read = self._read_head
            return self._say(text)
        certain = len(self._held) - max((overlap(self._held, trigger) for trigger in self._triggers), default=0)
        text = self._held[:certain].rstrip(BLANK)
        self._held = self._held[len(text) :]
        return self._say(text) or None

    def _read_head(self) -> Sequence[Delta] | None:
        for head, name in self._expected.items():
            if self._held.startswith(head):
                self._held = self._held[len(head) :]
                self._expected, self._extent = self._further, JsonExtent()
                self._read = self._read_arguments
                return (Delta(Kind.CALL, name),)
        return None

    def _read_arguments(self) -> Sequence[Delta] | None:
        if not self._held:
            return None
        end = self._extent.within(self._held)
        text, self._held = self._held[:end], self._held[end:]
        if self._extent.over:
            self._read = self._read_head
        return (Delta(Kind.ARGUMENTS, text),) if text else ()

    def _say(self, text: str) -> Sequence[Delta]:
        self._said = self._said or bool(text)
        return (Delta(Kind.TEXT, text),) if text else ()


class JsonExtent:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self.over = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def within(self, text: str) -> int:
        """How many characters of the next piece belong to the object."""
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
                if self._depth == 0:
                    self.over = True
                    return place + 1
        return len(text)
