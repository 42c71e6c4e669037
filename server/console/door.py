"""Who may enter the console: whoever has a key with its scope; without keys, whoever sits at the machine."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.access.keys import Client, hash_key
from server.console.sessions import SESSION_SECONDS, Session, Sessions
from server.errors import Forbidden, NotFound, Unauthorized
from server.routes.authentication import client_of
from server.service import Service
from server.settings.loopback import is_loopback

TOKEN_HEADER = "x-csrf-token"  # noqa: S105  a name
# What a proxy writes: it stands before a server that takes whoever comes from this machine for its owner.
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Door:
    """Lets requests in, or raises why not: NotFound where there is no console, Unauthorized, Forbidden."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions: Sessions[Client] = Sessions()

    def check(self, http: HttpRequest) -> None:
        """Raise NotFound where there is no console, and Forbidden for what comes from elsewhere."""
        settings = self._service.settings
        if not settings.serves_console:
            raise NotFound("There is no console here.")
        origin = http.headers.get("origin")
        if (origin is not None and _place(origin) != http.headers.get("host")) or _is_of_another_page(http):
            raise Forbidden("Pages of other origins may not use the console.", code="foreign_origin")
        if not settings.keys:
            _check_local(http)

    def reader(self, http: HttpRequest) -> Client:
        """Who reads: by a key in the header, by a session, or where there are no keys anybody on this machine."""
        self.check(http)
        session, anonymous = self.session(http), self._service.rules.clients.anonymous
        if session is not None:
            return _at_console(session.holder)
        if anonymous is not None:
            return _at_console(anonymous)
        if "authorization" not in http.headers:
            raise Unauthorized("The console needs a key whose scope is 'console'.")
        return _at_console(client_of(self._service, http, "console"))

    def sender(self, http: HttpRequest, token: str | None = None) -> Client:
        """Who sends something: by a key in the header, or by a session with its token, in the header or as `token`."""
        if "authorization" in http.headers and self._service.settings.keys:
            self.check(http)
            return _at_console(client_of(self._service, http, "console"))
        client, session = self.reader(http), self.session(http)
        sent = http.headers.get(TOKEN_HEADER, "") if token is None else token
        if session is None or not hmac.compare_digest(session.token.encode(), sent.encode()):
            raise Forbidden("The page is out of date; open it again.", code="stale_token")
        return client

    def sign_in(self, http: HttpRequest, key: str) -> Session[Client]:
        """A session for a key. Raises Unauthorized where it is not known, Forbidden where it has another scope."""
        self.check(http)
        client = self._service.rules.clients.authenticate([f"Bearer {key.strip()}"], scope="console")
        return self._sessions.begin(hash_key(key.strip()), client)

    def stroll_in(self) -> Session[Client] | None:
        """A session for whoever opens a page without one; None where that takes a key."""
        anonymous = self._service.rules.clients.anonymous
        return None if anonymous is None else self._sessions.begin("", anonymous)

    def session(self, http: HttpRequest) -> Session[Client] | None:
        """The session of a request, if it has one that holds."""
        cookie = http.cookies.get(cookie_name(http))
        return None if cookie is None else self._sessions.find(cookie, self._holders)

    @property
    def _holders(self) -> Mapping[str, Client]:
        clients = self._service.rules.clients
        return clients.holders("console") if clients.anonymous is None else {"": clients.anonymous}


def give_cookie(http: HttpRequest, response: Response, session: Session[Client]) -> None:
    """Have the browser keep a session."""
    secure = http.url.scheme == "https" or http.headers.get("x-forwarded-proto", "").lower() == "https"
    response.set_cookie(
        cookie_name(http),
        session.cookie,
        max_age=SESSION_SECONDS,
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def cookie_name(http: HttpRequest) -> str:
    """The name of the session's cookie. It has the port: browsers give a cookie to all servers of a host."""
    _, _, port = http.headers.get("host", "").rpartition(":")
    return f"autosteer_console_{port if port.isdecimal() else ''}"


def _is_of_another_page(http: HttpRequest) -> bool:
    """Whether a page of another site asks, as browsers tell it; a link that somebody follows is none of these."""
    elsewhere = http.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    return elsewhere and http.headers.get("sec-fetch-dest") != "document"


def _at_console(client: Client) -> Client:
    """What may be asked at the console: scores of tokens; by who needs no key, also another guard."""
    freedom = {"token_scores": True} if client.scope == "console" else {"token_scores": True, "may_loosen": True}
    return replace(client, terms=client.terms.model_copy(update=freedom))


def _check_local(http: HttpRequest) -> None:
    """Without keys, only a browser on this machine that was given its address: no proxy, no name that leads here."""
    peer = http.client.host if http.client is not None else ""
    name = _name(http.headers.get("host", ""))
    if not is_loopback(name) or not is_loopback(peer) or any(each in http.headers for each in FORWARDED):
        raise Forbidden(
            "Without keys the console is for browsers on the server's own machine; add a key with 'scope: console'.",
            code="not_local",
        )


def _place(origin: str) -> str:
    """Host and port of an origin; none of what is no origin."""
    return origin.partition("://")[2]


def _name(host: str) -> str:
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:
        return ""
