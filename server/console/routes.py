"""The console's routes: pages, files, sessions, a chat for them; and `/admin`, which only reads."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.access.keys import Client
from server.api.chat import ChatJob
from server.api.openapi import documented
from server.console import examples, review, teach
from server.console.bodies import small_body
from server.console.card import Admin, card_of
from server.console.door import Door, cookie_name, give_cookie
from server.console.now import Now, now_of
from server.console.pages import HEADERS, page, static
from server.console.reviews import Reviews
from server.errors import ApiError, NotFound
from server.http.body import as_json
from server.review.export import FILES
from server.routes.exchange import exchange
from server.service import Service

MAX_FORM_BYTES = 4096
ERRORS = (401, 403, 404, 500, 503)  # of `/admin`


def routes(service: Service) -> APIRouter:
    """All routes of the console."""
    router, door = APIRouter(), Door(service)
    _add_pages(router, service, door)
    _add_sessions(router, door)
    _add_files(router, door)
    _add_admin(router, service, door)
    reviews = Reviews(service.settings.audit)
    router.include_router(review.routes(door, reviews))
    router.include_router(teach.routes(service, door, reviews))

    @router.post("/console/chat", include_in_schema=False)
    async def chat(http: HttpRequest) -> Response:
        service.authenticate(http, door.sender)
        return await exchange(service, http, ChatJob.of)

    return router


def _add_admin(router: APIRouter, service: Service, door: Door) -> None:
    @router.get("/admin/guard", **documented(Admin, errors=ERRORS))
    async def guard(http: HttpRequest) -> Response:
        client = door.reader(http)
        return as_json(_card(service, client), headers={"cache-control": "no-store"})

    @router.get("/admin/now", **documented(Now, errors=ERRORS))
    async def now(http: HttpRequest) -> Response:
        door.reader(http)
        running, live = service.engine.load.running, service.engine.live
        found = now_of(service.metrics, service.settings.policy_names, running, max(0, live - running))
        return as_json(found, headers={"cache-control": "no-store"})


def _card(service: Service, client: Client) -> Admin:
    return card_of(service.require_served(), service.settings, client, service.origin)


def _add_pages(router: APIRouter, service: Service, door: Door) -> None:
    @router.get("/console", include_in_schema=False)
    async def try_it(http: HttpRequest) -> Response:
        return _shown(
            http, service, door, "try", lambda client: {"card": _card(service, client), "examples": _examples(service)}
        )

    @router.get("/console/guard", include_in_schema=False)
    async def guard(http: HttpRequest) -> Response:
        return _shown(http, service, door, "guard", lambda client: {"card": _card(service, client)})

    @router.get("/console/review", include_in_schema=False)
    async def review_page(http: HttpRequest) -> Response:
        audit = service.settings.audit
        kept = {
            "reviewable": audit is not None,
            "content": audit is not None and audit.content,
            "policies": service.settings.policy_names,
            "shadow": None if service.settings.shadow is None else service.settings.shadow.name,
        }
        return _shown(http, service, door, "review", lambda _: kept)

    @router.get("/console/teach", include_in_schema=False)
    async def teach_page(http: HttpRequest) -> Response:
        settings = service.settings
        known: dict[str, object] = {
            "reviewable": settings.audit is not None,
            "content": settings.audit is not None and settings.audit.content,
            "guard": settings.guard,
            "shadow": settings.shadow,
            "files": FILES,
        }
        return _shown(http, service, door, "teach", lambda _: known)


def _add_sessions(router: APIRouter, door: Door) -> None:
    @router.post("/console/session", include_in_schema=False)
    async def sign_in(http: HttpRequest) -> Response:
        try:
            door.check(http)
            session = door.sign_in(http, (await _form(http)).get("key", ""))
        except ApiError as error:
            return _refused(error)
        response = Response(status_code=303, headers={**HEADERS, "location": "/console"})
        give_cookie(http, response, session)
        return response

    @router.post("/console/session/end", include_in_schema=False)
    async def sign_out(http: HttpRequest) -> Response:
        try:
            door.reader(http)
            door.sender(http, (await _form(http)).get("token", ""))
        except ApiError as error:
            return _refused(error)
        response = Response(status_code=303, headers={**HEADERS, "location": "/console"})
        response.delete_cookie(cookie_name(http), httponly=True, samesite="strict")
        return response


def _add_files(router: APIRouter, door: Door) -> None:
    @router.get("/console/examples/{name}.png", include_in_schema=False)
    async def example(http: HttpRequest) -> Response:
        door.check(http)
        found = examples.BY_NAME.get(http.path_params["name"])
        if found is None or found.picture is None:
            raise NotFound("There is no such example.")
        return Response(
            examples.png_of(found), headers={**HEADERS, "cache-control": "no-cache"}, media_type="image/png"
        )

    @router.get("/console/static/{path:path}", include_in_schema=False)
    async def file(http: HttpRequest) -> Response:
        door.check(http)
        found = static(http, http.path_params["path"])
        if found is None:
            raise NotFound("There is no such file.")
        return found


def _shown(
    http: HttpRequest, service: Service, door: Door, name: str, fill: Callable[[Client], dict[str, object]]
) -> Response:
    """A page for who is in, or the one that says why not; without keys a session begins with it.

    `fill`: what is on it, once the model is loaded.
    """
    try:
        client = door.reader(http)
    except ApiError as error:
        return _refused(error)
    begun = None
    if (session := door.session(http)) is None:
        session = begun = door.stroll_in()
    ready = service.engine.ready and service.served is not None
    frame: dict[str, object] = {
        "client": client,
        "token": "" if session is None else session.token,
        "signed_in": bool(service.settings.keys),
        "served": service.served if ready else None,
        "state": service.engine.state,
        "here": name,
    }
    response = page(name, 200, {**frame, **fill(client)}) if ready else page("waiting", 200, frame)
    if begun is not None:
        give_cookie(http, response, begun)
    return response


def _refused(error: ApiError) -> Response:
    """The page that says why not."""
    wrong_key = error.code == "wrong_scope"
    if error.status == 401 or wrong_key:
        return page("sign_in", error.status, {"message": error.message if wrong_key else ""})
    return page("refused", error.status, {"message": error.message, "status": error.status})


def _examples(service: Service) -> tuple[examples.Example, ...]:
    """Those of the bundled model, where that is served."""
    return examples.EXAMPLES if service.settings.model is None else ()


async def _form(http: HttpRequest) -> dict[str, str]:
    """The fields of a small form. Raises BodyTooLarge, BadRequest, ClientGone."""
    body = await small_body(http, MAX_FORM_BYTES)
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
