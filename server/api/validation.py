"""A decoded JSON body -> a validated request, or a `BadRequest` that names the first field that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from server.api.fields import Strict
from server.errors import BadRequest, shown

Body = TypeVar("Body", bound=Strict)

PLAINER = {
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
}


def parse(kind: type[Body], data: object) -> Body:
    """A decoded JSON body as one of its kind; raises BadRequest naming the first field that is wrong."""
    if not isinstance(data, dict):
        raise BadRequest(f"The body must be a JSON object, not {shown(data)}.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _bad_field(data, error) from None


def _bad_field(data: Mapping[str, Any], error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    param = ".".join(_path(data, first["loc"], missing=kind == "missing"))
    match kind:
        case "missing":
            message = f"Missing required field '{param}'."
        case "extra_forbidden":
            message = f"Unknown field '{param[:200]}'."
        case "union_tag_invalid" | "union_tag_not_found":
            field = first["ctx"]["discriminator"].strip("'")
            param = f"{param}.{field}"
            known = first["ctx"].get("expected_tags")
            value = first["input"].get(field) if isinstance(first["input"], dict) else None
            message = (
                f"Invalid value for '{param}': {shown(value)}; expected one of {known}."
                if known
                else f"Missing required field '{param}'."
            )
        case _:
            message = f"Invalid value for '{param}': {PLAINER.get(kind, first['msg'])}; got {shown(first['input'])}."
    return BadRequest(message, param=param[:200])


def _is_tag(data: Mapping[str, Any], key: str | int) -> bool:
    """Whether a key tells the kind of an object in a list. All tools are functions: there it is the field's name."""
    return key in (data.get("role"), data.get("type")) and key != "function"


def _path(data: object, location: Sequence[str | int], *, missing: bool) -> Iterator[str]:
    """The keys of a pydantic location that are the client's; tags of unions are ours."""
    in_list = False
    for number, key in enumerate(location):
        last = number == len(location) - 1
        if in_list and not last and isinstance(data, dict) and _is_tag(data, key):
            in_list = False  # the tag of a message or a part; a part may also hold a field of that name
        elif (isinstance(data, list) and isinstance(key, int) and key < len(data)) or (
            isinstance(data, dict) and key in data
        ):
            in_list = isinstance(data, list)
            data = data[key]  # type: ignore[index]
            yield str(key)
        elif missing and last:
            yield str(key)
