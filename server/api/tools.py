"""The tools of a chat: which functions the model may call, which it must, and the schema that a forced call follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from models.loosened import says_unfollowed
from server.api.fields import HintValue, Strict, Text
from server.errors import BadRequest

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(Strict):
    """A function that the model may call; unless `strict`, what no grammar is made of in `parameters` is a hint."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    @property
    def accepts(self) -> dict[str, JsonValue]:
        """The JSON schema of its arguments, which are an object; without parameters there are none."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(Strict):
    """A tool: a function."""

    type: Literal["function"]
    function: Function
    cache_control: HintValue = None


def tool_of(name: str, description: str | None, parameters: dict[str, JsonValue] | None, strict: bool | None) -> Tool:
    """A tool of fields that were validated, as another API has them: schemas are long to validate again."""
    function = Function.model_construct(name=name, description=description, parameters=parameters, strict=strict)
    return Tool.model_construct(type="function", function=function)


class NamedFunction(Strict):
    """One of the functions by its name."""

    name: FunctionName


class NamedTool(Strict):
    """One of the tools."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    """Some of the tools, of which the model may or must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(Strict):
    """A choice of some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "word" if isinstance(value, str) else kind if kind in ("function", "allowed_tools") else None


ChoiceWord = Annotated[Literal["none", "auto", "required"], Tag("word")]
CHOICES = Discriminator(
    _kind_of_choice,
    custom_error_type="tool_choice",
    custom_error_message="must be 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'",
)
ToolChoice = Annotated[
    ChoiceWord | Annotated[NamedTool, Tag("function")] | Annotated[AllowedChoice, Tag("allowed_tools")], CHOICES
]


@dataclass(frozen=True)
class Tools:
    """The functions that the model may call in this answer. `forced`: it must call one, and says nothing else.

    `several`: it may call more than one, or one more than once.
    """

    tools: Sequence[Tool]
    forced: bool
    several: bool = True

    @property
    def functions(self) -> dict[str, dict[str, JsonValue]]:
        """What each function accepts, by its name."""
        return {tool.function.name: tool.function.accepts for tool in self.tools}

    @property
    def strict(self) -> list[str]:
        """The functions whose schemas are followed to the letter, or not at all."""
        return [tool.function.name for tool in self.tools if tool.function.strict]

    @property
    def hinted(self) -> bool:
        """Whether something of the functions' schemas is a hint."""
        return any(says_unfollowed(tool.function.accepts) for tool in self.tools if not tool.function.strict)

    def for_template(self) -> Iterator[dict[str, Any]]:
        """The functions as chat templates expect them."""
        for tool in self.tools:
            yield {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}


def tools_of(
    tools: Sequence[Tool] | None,
    choice: object,
    within: str = "function.",
    schema: str = "parameters",
    *,
    parallel: bool | None = None,
) -> Tools | None:
    """What a request's tools and its choice of them come to; None where nothing is to be called. Raises BadRequest.

    `within`: where in a tool the fields of its function stand; `schema`: the one that has its schema. `parallel`:
    whether there may be several calls; if not said, there may.
    """
    several = parallel is not False
    known: dict[str, Tool] = {}
    for place, tool in enumerate(tools or ()):
        if tool.function.name in known:
            raise _wrong(f"tools.{place}.{within}name", f"there are two tools of the name {tool.function.name!r}")
        _check_object(tool.function, f"tools.{place}.{within}{schema}.type")
        known[tool.function.name] = tool
    if not known and choice not in (None, "none", "auto"):
        raise _wrong("tool_choice", "there are no tools to choose from")
    match choice:
        case NamedTool(function=function):
            return Tools([_found(known, function.name, f"tool_choice.{within}name")], forced=True, several=False)
        case AllowedChoice(allowed_tools=allowed):
            path = "tool_choice.allowed_tools.tools"
            names = dict.fromkeys(each.function.name for each in allowed.tools)  # each once, or its schema grows
            named = [_found(known, name, path) for name in names]
            return Tools(named, forced=allowed.mode == "required", several=several)
        case "none":
            return None
    return Tools([*known.values()], forced=choice == "required", several=several) if known else None


def _check_object(function: Function, param: str) -> None:
    kind = (function.parameters or {}).get("type", "object")
    if kind != "object":
        raise _wrong(param, "the arguments of a function are an object")


def _found(known: dict[str, Tool], name: str, param: str) -> Tool:
    if name not in known:
        raise _wrong(param, f"there is no tool of the name {name!r}")
    return known[name]


def _wrong(param: str, why: str) -> BadRequest:
    return BadRequest(f"Invalid value for '{param}': {why}.", param=param)
