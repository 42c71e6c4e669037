"""The console's Review: which record is next, what it says, and what reviewers say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from server.api.fields import INT64, Strict, Text
from server.api.openapi import documented
from server.api.validation import parse
from server.console.bodies import small_body
from server.console.door import Door
from server.console.reviews import Reviews
from server.errors import NotFound
from server.http.body import as_json, parsed
from server.review.sources import Record
from server.review.store import Item, ReviewStore
from server.review.wanted import Wanted
from steering.labels import Label

MAX_BODY = 65_536  # bytes: a note and little more
ERRORS = (400, 401, 403, 404, 500, 503)
NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?(e-?[0-9]{1,3})?", re.IGNORECASE | re.ASCII)
NOT_KEPT = {"cache-control": "no-store"}


class Said(TypedDict):
    role: str
    text: str
    pictures: int


class Reviewed(TypedDict):
    label: str
    note: str
    reviewer: str


class ReviewItem(TypedDict):
    """A record; `messages` and `answers` are null where the audit log keeps none."""

    id: int
    flagged: bool
    facts: dict[str, Any]
    messages: list[Said] | None
    answers: list[str] | None
    mine: Reviewed | None
    others: list[Reviewed]


class NextItem(TypedDict):
    item: ReviewItem | None


class Summary(TypedDict):
    """`left`: records that are wanted; `both`: those that several have labelled, `same`: of which all say the same."""

    left: int
    both: int
    same: int


class Query(Wanted):
    """What is wanted, and the place from which to go on, as fields of a query."""

    after: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    back: bool = False


class LabelBody(Strict):
    """What a reviewer says of a record."""

    id: Annotated[int, Field(ge=0, lt=INT64)]
    label: Label
    note: Text = Field(default="", max_length=10_000)


def routes(door: Door, reviews: Reviews) -> APIRouter:
    """The routes that the page Review asks; those under `/admin` only read."""
    router = APIRouter()

    @router.get("/admin/review/next", **documented(NextItem, query=Query, errors=ERRORS))
    async def following(http: HttpRequest) -> Response:
        reviewer, query = door.reader(http).name, _query(http)
        return await reviews.ask(lambda kept: _shown(kept.next(query, reviewer, query.after, back=query.back)))

    @router.get("/admin/review/summary", **documented(Summary, query=Query, errors=ERRORS))
    async def summary(http: HttpRequest) -> Response:
        reviewer, query = door.reader(http).name, _query(http)
        found = await reviews.ask(partial(_summary, query=query, reviewer=reviewer), long=True)
        return as_json(found, headers=NOT_KEPT)

    @router.post("/console/review/label", include_in_schema=False)
    async def label(http: HttpRequest) -> Response:
        reviewer = door.sender(http).name
        body = parse(LabelBody, parsed(await small_body(http, MAX_BODY)))
        try:
            await reviews.ask(lambda kept: kept.label(body.id, reviewer, body.label, body.note))
        except KeyError:
            raise NotFound("There is no such record.", param="id") from None
        return as_json({})

    @router.post("/console/review/undo", include_in_schema=False)
    async def undo(http: HttpRequest) -> Response:
        reviewer = door.sender(http).name
        return await reviews.ask(partial(_undone, reviewer=reviewer))

    return router


def _summary(kept: ReviewStore, query: Query, reviewer: str) -> Summary:
    kept.fill()
    both, same = kept.agreement()
    return {"left": kept.left(query, reviewer), "both": both, "same": same}


def _undone(kept: ReviewStore, reviewer: str) -> Response:
    number = kept.undo(reviewer)
    return _shown(None if number is None else kept.item(number, reviewer))


def _shown(item: Item | None) -> Response:
    """A record as the page gets it. Slow where it is large: for worker threads."""
    return as_json({"item": None if item is None else _told(item)}, headers=NOT_KEPT)


def _query(http: HttpRequest) -> Query:
    """What is wanted. A value that is none of its kind stays a text, which the fields refuse. Raises BadRequest."""
    given: dict[str, object] = {}
    for name, value in http.query_params.items():
        if name in ("labelled", "back") and value in ("true", "false"):
            given[name] = value == "true"
        elif name in ("least", "most", "after") and NUMBER.fullmatch(value):
            given[name] = int(value) if name == "after" and value.isdecimal() else float(value)
        elif value:
            given[name] = value
    return parse(Query, given)


def _told(item: Item) -> ReviewItem:
    record = item.record or {}
    facts = {name: value for name, value in record.items() if name not in ("content", "answer") and value is not None}
    facts = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in facts.items()}
    answers = _decoded(record.get("answer"))
    return {
        "id": item.id,
        "flagged": item.flagged,
        "facts": facts,
        "messages": _messages(record),
        "answers": [*map(str, answers)] if isinstance(answers, list) else None,
        "mine": None if item.mine is None else _reviewed(item.mine),
        "others": [_reviewed(each) for each in item.others],
    }


def _decoded(kept: object) -> object:
    """What a field holds as JSON; None where it is none, as of a line that was changed by hand."""
    try:
        return orjson.loads(kept) if isinstance(kept, str) else None
    except orjson.JSONDecodeError:
        return None


def _reviewed(label: Mapping[str, Any]) -> Reviewed:
    return {"label": label["label"], "note": label["note"], "reviewer": label["reviewer"]}


def _messages(record: Record) -> list[Said] | None:
    """What was asked, as turns; None where the log does not keep it."""
    asked = _decoded(record.get("content"))
    if not isinstance(asked, dict):
        return None
    found: list[Said] = []
    for name in ("system", "instructions", "prompt", "input", "messages"):
        value = asked.get(name)
        turns = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        found += [_turn(turn, name) for turn in turns if turn is not None]
    return found


def _turn(turn: object, name: str) -> Said:
    role, content = (str(turn.get("role", name)), turn.get("content", turn)) if isinstance(turn, dict) else (name, turn)
    parts = content if isinstance(content, list) else [content]
    texts, pictures = [], 0
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and part.get("type") in ("image_url", "input_image", "image"):
            pictures += 1
        elif part is not None:
            texts.append(orjson.dumps(part).decode())
    return {"role": role, "text": "\n".join(texts), "pictures": pictures}
