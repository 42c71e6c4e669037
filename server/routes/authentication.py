"""The one step that every route but those of operations takes before anything else: who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request as HttpRequest
from fastapi import Security
from fastapi.security import HTTPBearer

from server.service import Service

BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="An API key; none is needed where none are set.")


def authentication(service: Service) -> Callable[..., Awaitable[None]]:
    """The dependency of those routes. It raises Unauthorized; `call_of(http).client` is set after it."""

    async def authenticate(http: HttpRequest, _: Annotated[object, Security(BEARER)]) -> None:
        service.authenticate(http)

    return authenticate
