"""The types of single fields of a body, and `Strict`, what every object of a body is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, LiteralString

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


NO_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}
Text = Annotated[str, AfterValidator(_no_nul), Field(json_schema_extra=NO_NUL)]
Label = Annotated[str, Field(max_length=512, json_schema_extra=NO_NUL), AfterValidator(_no_nul)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$"), AfterValidator(_no_nul)]
Positive = Annotated[int, Field(ge=1, lt=INT64)]
NotSupported = Annotated[None, BeforeValidator(not_supported("this server does not support it; leave it out"))]


def unless_null(check: Any) -> BeforeValidator:  # noqa: ANN401  any validator
    """Apply a check to all but null."""
    return BeforeValidator(lambda value: None if value is None else check(value))


class Strict(BaseModel):
    """Unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:  # noqa: ANN401  JSON of any shape
        # An object of a million unknown fields would be a million errors.
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("fields", f"an object here has at most {MAX_FIELDS} fields")
        return data
