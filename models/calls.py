"""How families write calls of functions within their answers: facts that a model's chat template tells apart."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

NAME: Final = "\ue0f2"  # stands for the name of the function
BLANK: Final = " \t\r\n"


@dataclass(frozen=True)
class CallSyntax:
    """Calls as a family writes them: a trigger, `opens`, each one's `head`, arguments and `tail`, at last `closes`.

    An empty trigger: the answer begins with the call. `between` stands before the head of a further one; None: there
    is one at most. `marks`: the tokens of the vocabulary, by their text, that stand in these for themselves. `added`:
    others that may stand in a text.
    """

    triggers: Sequence[str]
    opens: str
    head: str
    tail: str
    between: str | None = None
    closes: str = ""
    separators: Sequence[str] = (", ", ": ")  # of the JSON of arguments
    marks: Mapping[str, int] = field(default_factory=dict)
    added: Sequence[int] = ()

    def first(self, name: str) -> str:
        """What stands between the trigger and the arguments of the first call."""
        return self.opens + self.head.replace(NAME, name)

    def further(self, name: str) -> str:
        """What stands between the arguments of a call and those of the next."""
        assert self.between is not None, "an answer may have one call"
        return self.tail + self.between + self.head.replace(NAME, name)

    @property
    def _literals(self) -> Sequence[str]:
        return [*self.triggers, self.opens, self.head, self.tail, self.between or "", self.closes]

    def over(self, added: Mapping[int, str], special: Collection[int]) -> CallSyntax:
        """The same syntax over a tokenizer: the texts of its added tokens, and which of them are special."""
        marks = {text: token for token, text in added.items() if any(text in each for each in self._literals)}
        others = sorted(set(added) - set(special) - set(marks.values()))
        return replace(self, marks=marks, added=others)


def _named(arguments: str) -> str:
    return f'{{"name": "{NAME}", "{arguments}": '


FAMILIES: Mapping[str, CallSyntax] = {
    # Qwen 2.5 and 3, Hermes
    "hermes": CallSyntax(
        ("<tool_call>",), "\n", _named("arguments"), "}\n</tool_call>", "\n<tool_call>\n"
    ),
    # SmolLM2 with the instructions that it was trained on
    "listed": CallSyntax(("<tool_call>",), "[", _named("arguments"), "}", ", ", "]</tool_call>"),
    # Llama 3.1 and later: one call, which is the whole answer
    "llama": CallSyntax(("<|python_tag|>", ""), "", _named("parameters"), "}"),
    "mistral": CallSyntax(("[TOOL_CALLS]",), " [", _named("arguments"), "}", ", ", "]"),
    "mistral_tekken": CallSyntax(("[TOOL_CALLS]",), "[", _named("arguments"), "}", ", ", "]"),
    "mistral_named": CallSyntax(("[TOOL_CALLS]",), "", f"{NAME}[ARGS]", "", "[TOOL_CALLS]"),
}  # fmt: skip

# Of families without one, for a call that must be made: it is the whole answer, or its arguments are.
COMPACT: Final = (",", ":")
ENVELOPE = CallSyntax(("",), "", f'{{"name":"{NAME}","arguments":', "}", separators=COMPACT)
ARGUMENTS = CallSyntax(("",), "", "", "", separators=COMPACT)


def syntax_in(answer: str, name: str, arguments: object) -> CallSyntax | None:
    """The syntax that a chat template has written this call in, as all of an answer; None for one that is not known."""
    written, said = json.dumps(arguments), answer.lstrip(BLANK)
    for syntax in FAMILIES.values():
        call = syntax.first(name) + written
        if any(trigger + call in said if trigger else said.startswith(call) for trigger in syntax.triggers):
            return syntax
    return None


def split_at_marks(text: str, syntax: CallSyntax) -> list[str]:
    """A text in pieces, each a mark or free of them."""
    if not syntax.marks:
        return [text]
    longest_first = sorted(syntax.marks, key=len, reverse=True)
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if piece]
