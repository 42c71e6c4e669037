"""The one step that every route but those of operations takes before anything else: who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import Request as HttpRequest
from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer

from server.access.keys import Client
from server.service import Service
from server.settings.values import Scope

ABOUT = "An API key; none is needed where none are set."
BEARER = HTTPBearer(auto_error=False, scheme_name="key", description=ABOUT)
API_KEY = APIKeyHeader(name="x-api-key", auto_error=False, scheme_name="x-api-key", description=ABOUT)


def authentication(service: Service) -> Callable[..., Awaitable[None]]:
    """The dependency of those routes. It raises Unauthorized; `call_of(http).client` is set after it."""

    async def authenticate(
        http: HttpRequest, _: Annotated[object, Security(BEARER)], __: Annotated[object, Security(API_KEY)]
    ) -> None:
        service.authenticate(http, partial(client_of, service))

    return authenticate


def client_of(service: Service, http: HttpRequest, scope: Scope = "api") -> Client:
    """Who asks by an API key. Raises BadRequest, Unauthorized, and Forbidden where the key has another scope."""
    sent = http.headers.getlist
    return service.rules.clients.authenticate(sent("authorization"), sent("x-api-key"), scope)
