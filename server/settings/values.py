"""The types that settings are made of."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

DEFAULT_POLICY = "default"
AUDIT_SCHEMES = ("file", "sqlite", "postgresql")
MEBI = 2**20

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
# A name as it is compared with a URL's host: lower case, no trailing dot; `*.` stands for one or more labels.
Domain = Annotated[
    str, Field(max_length=253, pattern=r"^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]$")
]
Endpoint = Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s@?#]+$")]
Word = Annotated[str, Field(min_length=1, max_length=200)]


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [word.strip() for word in value.split(",")]


# Several, also as one text with commas between them: the command line and the environment have nothing else.
Words = Annotated[tuple[Word, ...], NoDecode, BeforeValidator(_words)]
