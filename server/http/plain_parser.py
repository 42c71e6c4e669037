"""A parser of HTTP/1.1 to which a request that offers another protocol is one like any other.

Java's client offers HTTP/2 with every request (`Upgrade: h2c`). A server may leave an offer alone (RFC 9110, section
7.8), but httptools then takes what follows the head for the other protocol's, and the body is lost.
"""

from __future__ import annotations

from typing import Any

import httptools

HEAD = b"POST / HTTP/1.1\r\n%b\r\n"
FRAMING = (b"content-length", b"transfer-encoding", b"connection")  # what a body's end depends on


class PlainParser:
    """`httptools.HttpRequestParser`, for a protocol whose `headers` are those of the request at hand."""

    def __init__(self, protocol: Any) -> None:  # noqa: ANN401  uvicorn's
        self._protocol = protocol
        self._parser = httptools.HttpRequestParser(protocol)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  the parser's own
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> None:
        """Parse more. Raises httptools.HttpParserError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._parser = httptools.HttpRequestParser(_AfterHead(self._protocol))
            fields = [b"%b: %b\r\n" % (name, _without_offer(value)) for name, value in self._protocol.headers
                      if name in FRAMING]  # fmt: skip
            self._parser.feed_data(HEAD % b"".join(fields))
            self.feed_data(data[offer.args[0] :])


def _without_offer(value: bytes) -> bytes:
    return b", ".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")


class _AfterHead:
    """Hands a protocol everything but the first head, which it has had."""

    def __init__(self, protocol: Any) -> None:  # noqa: ANN401
        self._protocol = protocol
        self._heads = 0
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        self._heads += 1
        if self._heads > 1:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._heads > 1:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._heads > 1:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._heads > 1:
            self._protocol.on_headers_complete()
