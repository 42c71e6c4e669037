"""The types that settings are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
