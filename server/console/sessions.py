"""Sessions of the console: a cookie that stands for a key, and tokens that only a page of this server can send.

Nothing is kept of a session. Its cookie says until when it holds and is signed with the key's hash and a secret of this
process, so it ends with the key, with its time, and with the server.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Generic, TypeVar

SESSION_SECONDS = 12 * 3600
T = TypeVar("T")


@dataclass(frozen=True)
class Session(Generic[T]):
    """Who is in, and the token that what they send must carry."""

    holder: T
    cookie: str
    token: str


class Sessions(Generic[T]):
    """Makes sessions and knows them again. `clock`: seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._secret = secrets.token_bytes(32)
        self._clock = clock

    def begin(self, key_hash: str, holder: T) -> Session[T]:
        """A new session of whoever has shown the key of this hash."""
        words = f"{int(self._clock()) + SESSION_SECONDS}.{secrets.token_urlsafe(12)}"
        cookie = f"{words}.{self._signed('session', key_hash, words)}"
        return Session(holder, cookie, self._token(cookie))

    def find(self, cookie: str, holders: Mapping[str, T]) -> Session[T] | None:
        """The session of a cookie, if its time is not over and its key is among the `holders`, by hashes of keys."""
        words, _, signature = cookie.rpartition(".")
        end = words.partition(".")[0]
        if not end.isdecimal() or not end.isascii() or len(end) > 12 or int(end) < self._clock():
            return None
        found = None
        for key_hash, holder in holders.items():
            if hmac.compare_digest(self._signed("session", key_hash, words).encode(), signature.encode()):
                found = Session(holder, cookie, self._token(cookie))
        return found

    def _token(self, cookie: str) -> str:
        return self._signed("token", cookie)

    def _signed(self, *words: str) -> str:
        return hmac.new(self._secret, "\n".join(words).encode(), hashlib.sha256).hexdigest()
