"""The console's pages and files: templates that escape whatever they are given, and headers that let no script in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import Request as HttpRequest
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

HERE = Path(__file__).parent
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class StaticFile(NamedTuple):
    """One file that pages load."""

    content: bytes
    kind: str
    tag: str


@cache
def static_files() -> dict[str, StaticFile]:
    """All files that pages load, by their paths; they are part of the package, and do not change."""
    found = {}
    for path in sorted((HERE / "static").rglob("*")):
        if path.suffix in KINDS:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.relative_to(HERE / "static").as_posix()] = StaticFile(content, KINDS[path.suffix], tag)
    return found


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(HERE / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(name: str, status: int, values: Mapping[str, object]) -> Response:
    """A page made of a template."""
    text = _templates().get_template(f"{name}.html").render(values)
    return Response(text, status, {**HEADERS, "cache-control": "no-store"}, media_type="text/html")


def static(http: HttpRequest, path: str) -> Response | None:
    """A file, or that the browser has it already; None where there is none."""
    file = static_files().get(path)
    if file is None:
        return None
    headers = {**HEADERS, "cache-control": "no-cache", "etag": file.tag}
    if http.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)
