"""Cookies that cost nothing to read: every route reads them, whether or not it wants any, before it asks for a key."""

from __future__ import annotations

from collections.abc import Iterable

MAX_COOKIE_BYTES = 16 * 2**10  # of one header; each cookie takes a microsecond

Header = tuple[bytes, bytes]


def plain_cookies(headers: Iterable[Header]) -> list[Header]:
    """Headers without cookies in quotes, and without a header of too many: nobody here has given such.

    Python takes 11 s to read 64 KB of escapes in quotes, four times as long for each twice as many.
    """
    return [(name, _plain(value)) if name == b"cookie" else (name, value) for name, value in headers]


def _plain(cookies: bytes) -> bytes:
    if len(cookies) > MAX_COOKIE_BYTES:
        return b""
    return b";".join(each for each in cookies.split(b";") if b'"' not in each)
