"""The types of single fields of a body, and `Strict`, what every object of a body is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Final, LiteralString

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

MAX_FIELDS = 128
INT64 = 2**63


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "the text must not hold the character U+0000")
    return text


def not_supported(why: LiteralString) -> Callable[[JsonValue], None]:
    """Refuse every value but null, with this reason."""

    def check(value: JsonValue) -> None:
        if value is not None:
            raise PydanticCustomError("not_supported", why)

    return check


def only(*allowed: JsonValue, why: LiteralString) -> BeforeValidator:
    """Accept null and the given values alone: those that ask for nothing this server cannot do."""

    def check(value: JsonValue) -> JsonValue:
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            return value
        raise PydanticCustomError("not_supported", why)

    return BeforeValidator(check)


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("number", "must be a number")
    return value


def _whole(value: object) -> object:
    # To JSON Schema 64.0 is an integer, and clients in languages with one type of number send it.
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Hint:
    """Marks a field that asks for nothing that could change an answer: it is accepted, and told to be ignored."""


HINT: Final = Hint()


NO_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}
Text = Annotated[str, AfterValidator(_no_nul), Field(json_schema_extra=NO_NUL)]
Label = Annotated[str, Field(max_length=512, json_schema_extra=NO_NUL), AfterValidator(_no_nul)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$"), AfterValidator(_no_nul)]
Integer = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[Integer, Field(ge=1, lt=INT64)]
HintText = Annotated[Label | None, HINT]
HintObject = Annotated[dict[str, JsonValue] | None, HINT]
HintFlag = Annotated[bool | None, HINT]
HintValue = Annotated[JsonValue, HINT]
NotSupported = Annotated[None, BeforeValidator(not_supported("this server does not support it; leave it out"))]


def unless_null(check: Any) -> BeforeValidator:  # noqa: ANN401  any validator
    """Apply a check to all but null."""
    return BeforeValidator(lambda value: None if value is None else check(value))


class Strict(BaseModel):
    """Unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)
    hints: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:  # noqa: ANN401  as the base class has it
        cls.hints = frozenset(name for name, field in cls.model_fields.items() if HINT in field.metadata)

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given, here and within; places in lists are not told apart."""
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is None:
                continue
            if name in self.hints:
                yield name
            elif isinstance(value, Strict):
                yield from (f"{name}.{within}" for within in value.ignored())
            elif isinstance(value, list) and value and isinstance(value[0], Strict):
                yield from {f"{name}.{within}" for each in value for within in each.ignored()}

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:  # noqa: ANN401  JSON of any shape
        # An object of a million unknown fields would be a million errors.
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("fields", f"an object here has at most {MAX_FIELDS} fields")
        return data
