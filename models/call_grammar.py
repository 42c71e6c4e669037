"""The grammar of an answer that may call functions, or must: llguidance decides where a call begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llguidance import LLMatcher

from models.calls import COMPACT, CallSyntax, split_at_marks
from models.loosened import loosened
from models.narrowed import narrowed
from models.schema import OPTIONS, check_schema, check_size
from models.tidied import tidied


@dataclass(frozen=True)
class CallGrammar:
    """An answer that calls functions, in the syntax of a family.

    `functions`: the schema of each one's arguments, by its name; `strict`: those that are followed to the letter or not
    at all. `several`: a call may follow another. `forced`: the
    answer is calls and nothing else. Otherwise it is any text, which calls may end, or, where there is a schema for the
    `answer`, JSON or calls.
    """

    syntax: CallSyntax
    functions: Mapping[str, Mapping[str, Any]]
    several: bool = True
    forced: bool = False
    answer: Mapping[str, Any] | None = None
    strict: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert self.answer is None or "" not in self.syntax.triggers, "a call and an answer in JSON begin differently"

    def described(self) -> dict[str, Any]:
        """The grammar as JSON, which `described_calls` reads; copying the schemas takes long."""
        return {**vars(self), "syntax": asdict(self.syntax)}

    def check_size(self) -> None:
        """Raise SchemaError where there are too many values or characters. Fast, whatever they are."""
        check_size({**self.functions, "": self.answer})

    def narrowed(self, longest: int) -> CallGrammar:
        """The same grammar with narrower schemas, as `models.narrowed` makes them."""
        functions = {name: narrowed(schema, longest) for name, schema in self.functions.items()}
        answer = None if self.answer is None else narrowed(self.answer, longest)
        return replace(self, functions=functions, answer=answer)

    def loosened(self) -> CallGrammar:
        """The same grammar without what no grammar is made of in schemas of functions that are not strict."""
        loose = {name: schema if name in self.strict else loosened(schema) for name, schema in self.functions.items()}
        return replace(self, functions=loose)

    def source(self) -> str:
        """The grammar as the compiler reads it. Raises SchemaError where a schema is too large or known to be dear."""
        for schema in (*self.functions.values(), self.answer or {}):
            check_schema(schema)
        return LLMatcher.grammar_from_lark("\n".join(self._rules()))

    @property
    def _repeats(self) -> bool:
        return self.several and self.syntax.between is not None

    @property
    def _begins_answers(self) -> bool:
        """Whether an answer that begins with a call's head is that call, and one that does not is none."""
        return not self.forced and "" in self.syntax.triggers

    def _rules(self) -> Iterator[str]:
        yield "%llguidance {}"
        if self.forced:
            yield f"start: {self._literal(self.syntax.triggers[-1])} call rest"
        elif self.answer is not None:
            triggers = " | ".join(map(self._literal, self.syntax.triggers))
            yield f"start: answer | ({triggers}) call rest"
            yield f"answer: {_json(self.answer, COMPACT)}"
        else:
            yield from self._free()
        for number, (name, schema) in enumerate(self.functions.items()):
            yield f"accepts{number}: {_json(schema, self.syntax.separators)}"
            yield f"call{number}: {self._literal(self.syntax.first(name))} accepts{number}"
            if self._begins_answers:
                yield f"head{number}[lazy]: /[ \\t\\r\\n]*/ {json.dumps(self.syntax.first(name))}"
            if self._repeats:
                yield f"further{number}: {self._literal(self.syntax.further(name))} accepts{number}"
        yield f"call: {self._any_of('call{}')}"
        further = f"({self._any_of('further{}')})* " if self._repeats else ""
        yield f"rest: {further}end"
        yield f"end: {self._literal(self.syntax.tail + self.syntax.closes)}"

    def _free(self) -> Iterator[str]:
        """A text, which calls may end. What is lazy ends with the first trigger: from there on a call is written."""
        openings: list[str] = []
        for number, trigger in enumerate(filter(None, self.syntax.triggers)):
            yield f"opening{number}[lazy]: TEXT {json.dumps(trigger)}"
            openings.append(f"opening{number}")
            if trigger in self.syntax.marks:
                openings.append(f"TEXT <[{self.syntax.marks[trigger]}]>")
        added = ",".join(map(str, self.syntax.added))
        text = f"(TEXT <[{added}]>)* " if added else ""
        alternatives = [f"{text}TEXT", f"{text}({' | '.join(openings)}) call rest" if openings else ""]
        if self._begins_answers:
            alternatives.append(f"({self._any_of('head{0} accepts{0}')}) rest")
        yield f"start: {' | '.join(filter(None, alternatives))}"
        yield "TEXT: /(.|\\n)*/"

    def _any_of(self, rule: str) -> str:
        return " | ".join(rule.format(number) for number in range(len(self.functions)))

    def _literal(self, text: str) -> str:
        """A text, in which a mark may be spelled too."""
        return " ".join(
            f"(<[{self.syntax.marks[piece]}]> | {json.dumps(piece)})"
            if piece in self.syntax.marks
            else json.dumps(piece)
            for piece in split_at_marks(text, self.syntax)
            if piece
        )


def _json(schema: Mapping[str, Any], separators: Sequence[str]) -> str:
    item, key = separators
    options = {**OPTIONS, "item_separator": item, "key_separator": key}
    return f"%json {json.dumps({**tidied(schema), 'x-guidance': options})}"


def described_calls(described: Mapping[str, Any]) -> CallGrammar:
    """The grammar that `CallGrammar.described` wrote as JSON."""
    return CallGrammar(**{**described, "syntax": CallSyntax(**described["syntax"])})
