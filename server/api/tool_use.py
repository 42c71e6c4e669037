"""What a request's tools come to on the served model: the grammar and the parser of answers, and what is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.call_grammar import CallGrammar
from models.calls import ARGUMENTS, ENVELOPE
from server.answer.calls import Calls
from server.answer.delta import Kind
from server.answer.parser import Parser, PlainText
from server.api.answer_fields import AnswerFields
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.api.tools import Tools
from server.errors import BadRequest
from server.settings.schema import Settings


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and the JSON schema of an answer that calls none of them, with the path of its field."""

    tools: Tools | None
    json: Mapping[str, Any] | None = None
    field: str = ""

    def schema(self, served: Served) -> WantedSchema | None:
        """What the answer follows, if anything."""
        if (grammar := self.grammar(served)) is not None:
            return WantedSchema(grammar, "tools")
        return None if self.json is None else WantedSchema(self.json, self.field)

    def parser(self, served: Served) -> Parser:
        """What tells calls from text."""
        grammar = self.grammar(served)
        return PlainText(Kind.TEXT) if grammar is None else Calls(grammar)

    def grammar(self, served: Served) -> CallGrammar | None:
        """The grammar of an answer that may call tools, or must; None where it calls none.

        Of a model without a syntax for calls, an answer is one or it is none, as the request says.
        """
        tools, syntax = self.tools, served.inputs.reads.calls
        if tools is None:
            return None
        if tools.forced:
            syntax = syntax or (ARGUMENTS if len(tools.functions) == 1 else ENVELOPE)
            return CallGrammar(syntax, tools.functions, tools.several, forced=True, strict=tools.strict)
        if syntax is None or (self.json is not None and "" in syntax.triggers):
            return None  # or a call and JSON would begin alike
        return CallGrammar(syntax, tools.functions, tools.several, answer=self.json, strict=tools.strict)

    def check(self, answer: AnswerFields, served: Served, settings: Settings) -> None:
        """Raise BadRequest for what does not go together, and for tools that are ignored, where the settings say so."""
        if self.schema(served) is not None and answer.least_tokens:
            name = "ignore_eos" if answer.ignore_eos else "min_tokens"
            raise BadRequest(
                f"'{name}' is not supported with JSON or tools: an answer ends where they are complete.", param=name
            )
        if self.grammar(served) is not None:
            if answer.likeliest is not None:
                raise BadRequest("'logprobs' is not supported where tools may be called.", param="logprobs")
        elif self.tools is not None and settings.optional_tools == "refuse":
            raise BadRequest(
                "This model calls a tool only where it must: 'tool_choice' is 'required', or names a function.",
                param="tools",
            )

    def told(self, served: Served) -> Sequence[Mapping[str, Any]]:
        """The tools that the prompt describes: those that may be called, where the chat template knows them."""
        if self.tools is None or self.grammar(served) is None or not served.inputs.reads.tools:
            return ()
        return [*self.tools.for_template()]

    def ignored(self, served: Served) -> Sequence[str]:
        """What of the tools nothing is made of, by its path in a request."""
        if self.tools is None:
            return ()
        if self.grammar(served) is None:
            return ("tools",)
        schemas = ["tools.function.parameters"] if self.tools.hinted else []
        return schemas if served.inputs.reads.tools else [*schemas, "tools.function.description"]
