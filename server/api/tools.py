"""The tools of a chat: which functions the model may call, which it must, and the schema that a forced call follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from models.schema import SchemaError, check_size
from server.api.fields import HintValue, Strict, Text
from server.api.schemas import unusable
from server.errors import BadRequest

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(Strict):
    """A function that the model may call; a call follows `parameters`, whether or not `strict` is asked for."""

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
    """The functions that the model may call in this answer. `forced`: it must call one, and says nothing else."""

    tools: Sequence[Tool]
    forced: bool

    @property
    def only(self) -> Function | None:
        """The one function that a forced call is of."""
        return self.tools[0].function if self.forced and len(self.tools) == 1 else None

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of a forced call: the arguments of the one function, or a name and its arguments."""
        if self.only is not None:
            return self.only.accepts
        functions = [tool.function for tool in self.tools]
        return {
            "$defs": {f"f{place}": _moved(each.accepts, f"#/$defs/f{place}") for place, each in enumerate(functions)},
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"name": {"const": each.name}, "arguments": {"$ref": f"#/$defs/f{place}"}},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for place, each in enumerate(functions)
            ],
        }

    def for_template(self) -> Iterator[dict[str, Any]]:
        """As chat templates expect them."""
        for tool in self.tools:
            yield {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}


def forces_call(tools: Tools | None) -> bool:
    """Whether the answer is a call and nothing else."""
    return tools is not None and tools.forced


def _moved(schema: Any, root: str) -> Any:  # noqa: ANN401  JSON of any shape
    """A schema whose references are found where it stands now."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, root)
        for key, value in schema.items()
    }


def tools_of(tools: Sequence[Tool] | None, choice: object, within: str = "function.") -> Tools | None:
    """What a request's tools and its choice of them come to; None where nothing is to be called. Raises BadRequest.

    `within`: where in a tool the fields of its function stand.
    """
    known: dict[str, Tool] = {}
    for place, tool in enumerate(tools or ()):
        if tool.function.name in known:
            raise _wrong(f"tools.{place}.{within}name", f"there are two tools of the name {tool.function.name!r}")
        _check_object(tool.function, f"tools.{place}.{within}parameters.type")
        known[tool.function.name] = tool
    if not known and choice not in (None, "none", "auto"):
        raise _wrong("tool_choice", "there are no tools to choose from")
    match choice:
        case NamedTool(function=function):
            return Tools([_found(known, function.name, f"tool_choice.{within}name")], forced=True)
        case AllowedChoice(allowed_tools=allowed):
            path = "tool_choice.allowed_tools.tools"
            names = dict.fromkeys(each.function.name for each in allowed.tools)  # each once, or its schema grows
            return _checked(Tools([_found(known, name, path) for name in names], forced=allowed.mode == "required"))
        case "none":
            return None
    return _checked(Tools([*known.values()], forced=choice == "required")) if known else None


def _checked(tools: Tools) -> Tools:
    """The tools; raises BadRequest where the schema of a forced call would be too large to be made of theirs."""
    try:
        if tools.forced:
            check_size({tool.function.name: tool.function.accepts for tool in tools.tools})
    except SchemaError as error:
        raise unusable("tools", error) from None
    return tools


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
