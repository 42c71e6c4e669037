"""What is kept of one request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

import orjson

from server.media.files import MediaError, data_url, read_data_url

CONTENT_FIELDS = ("messages", "system", "tools", "prompt", "input", "instructions")
TEXT_FIELDS = (
    "content",
    "text",
    "refusal",
    "prompt",
    "input",
    "arguments",
    "description",
)  # words, which are kept as they are
FILE_FIELDS = ("url", "image_url", "data", "file_data")  # of images, audio and files
MAX_WORD = 256  # characters of any other string: names, types, what nobody knows
HASHED_AT_ONCE = 2**20  # characters


class Outcome(StrEnum):
    """How a request ended for its client."""

    COMPLETED = "completed"  # with a whole answer, a refusal of the guard included
    REJECTED = "rejected"  # before anything was generated; `reason` says why
    FAILED = "failed"  # while the answer was made, or cut short by the end of the server
    DISCONNECTED = "disconnected"  # the client left, or stopped reading


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One request to a route that needs a key. Times in seconds; None is what the request did not come to."""

    time: datetime  # of arrival, UTC
    request_id: str  # the X-Request-Id of its answer
    route: str
    outcome: Outcome
    status: int | None = None  # None: the client left before there was one
    reason: str | None = None
    key: str | None = None  # its name; `anonymous` on a server without keys
    policy: str | None = None
    mode: str | None = None
    threshold: float | None = None
    eps: float | None = None
    decision: str | None = None
    score: float | None = None
    categories: str | None = None  # JSON: those that a flagged prompt counts as; None where the bundle has none
    category_scores: str | None = None  # JSON: the score of each
    layer: int | None = None
    guard: str | None = None  # the id of the bundle that judged
    answer_mode: str | None = None  # how answers are watched; None where they are not
    answer_decision: str | None = None
    answer_score: float | None = None
    answer_reason: str | None = None  # why the policy's refusal text stands for it
    shadow: str | None = None
    shadow_decision: str | None = None
    shadow_score: float | None = None
    shadow_answer_decision: str | None = None
    shadow_answer_score: float | None = None
    modality: str | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    completion_tokens: int | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    guard_seconds: float | None = None
    total_seconds: float = 0.0
    content_hash: str | None = None
    content: str | None = None
    answer: str | None = None
    record_id: str = field(default_factory=lambda: uuid4().hex)


def content_of(body: object, fetched: Mapping[str, bytes]) -> bytes:
    """What was asked, as JSON with sorted keys; what is no text stands there as a hash.

    An image's `url` is the SHA-256 of its bytes; what cannot be read as an image, and all else that is no text and is
    long, the SHA-256 of the string as it was sent.
    """
    asked = {name: body[name] for name in CONTENT_FIELDS if name in body} if isinstance(body, dict) else {}
    return orjson.dumps(_without_files(asked, fetched, ""), option=orjson.OPT_SORT_KEYS)


def content_hash(content: bytes) -> str:
    """SHA-256 of what `content_of` gives."""
    return hashlib.sha256(content).hexdigest()


def _without_files(value: object, fetched: Mapping[str, bytes], name: str) -> object:
    """`name`: of the field that the value stands in."""
    match value:
        case dict():
            block = _of_block(value, fetched)
            rest = {key: each for key, each in value.items() if key not in block}
            return block | {key: _without_files(each, fetched, str(key)) for key, each in rest.items()}
        case list():
            return [_without_files(each, fetched, name) for each in value]
        case str() if name in FILE_FIELDS:
            return _hashed(value, fetched)
        case str() if name not in TEXT_FIELDS and len(value) > MAX_WORD:
            return _hashed_as_sent(value)
    return value


def _of_block(value: dict[str, Any], fetched: Mapping[str, bytes]) -> dict[str, object]:
    """Fields of Anthropic's blocks: of a call its input, which is words as `arguments` are; of an image its file."""
    match value:
        case {"type": "tool_use", "input": said}:
            return {"input": said}
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            return {"data": _hashed(data_url(kind, data), fetched)}
    return {}


def _hashed(url: str, fetched: Mapping[str, bytes]) -> str:
    """An image's bytes as their hash; of what is none, the string's."""
    try:
        data = fetched[url] if url in fetched else read_data_url(url, len(url))
    except MediaError:
        return _hashed_as_sent(url)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _hashed_as_sent(text: str) -> str:
    digest = hashlib.sha256()
    for at in range(0, len(text), HASHED_AT_ONCE):  # other threads have a turn in between
        digest.update(text[at : at + HASHED_AT_ONCE].encode(errors="surrogatepass"))
    return "sha256-as-sent:" + digest.hexdigest()
