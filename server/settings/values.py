"""The types that settings are made of."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

DEFAULT_POLICY = "default"
AUDIT_SCHEMES = ("file", "sqlite", "postgresql")

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
# A name as it is compared with a URL's host: lower case, no trailing dot; `*.` stands for one or more labels.
DOMAIN = r"^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]$"
Domain = Annotated[str, Field(max_length=253, pattern=DOMAIN)]
ENDPOINT = r"^https?://[^\s@?#]+$"
Endpoint = Annotated[str, Field(max_length=2000, pattern=ENDPOINT)]
DEVICE = r"^(auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?)$"
Device = Annotated[str, Field(pattern=DEVICE)]
LANGUAGE = r"^[a-z]{2,3}$"
Language = Annotated[str, Field(pattern=LANGUAGE)]
CHANGE = r"^change-[0-9a-f]{16}$"
Change = Annotated[str, Field(pattern=CHANGE)]
# What a value must be, for those who cannot read patterns.
IN_WORDS = {
    NAME: "must be at most 64 letters, digits, dots, dashes and underscores, and begin with a letter or a digit",
    DOMAIN: "must be a domain in lower case, such as images.example.com or *.example.com, without https:// or a path",
    ENDPOINT: "must be a URL such as http://collector:4318, without user, password or query",
    DEVICE: "must be auto, cpu, cuda, cuda:0, mps or xpu",
    LANGUAGE: "must be a language's two or three letters in lower case, without a region, such as de",
    CHANGE: "must be the change- and digits that a refused reload names",
}
Scope = Literal["api", "console"]
Word = Annotated[str, Field(min_length=1, max_length=200)]


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [word.strip() for word in value.split(",")]


# Several, also as one text with commas between them: the command line and the environment have nothing else.
Words = Annotated[tuple[Word, ...], NoDecode, BeforeValidator(_words)]
