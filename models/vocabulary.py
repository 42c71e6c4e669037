"""What each token of a tokenizer stands for, in bytes: a token may be a part of a character, or of several."""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # SentencePiece's mark of a space


class Vocabulary:
    """Bytes of each token, as the tokenizer's decoder makes text of them."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401  a fast tokenizer of transformers
        self.size = len(tokenizer)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        self.byte_level = "ByteLevel" in _kinds(state["decoder"])
        self._tokenizer = tokenizer
        self._bytes = _byte_of_character() if self.byte_level else {}

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; none for an id that is no token."""
        text = self._tokenizer.convert_ids_to_tokens(token) if token < self.size else None
        if text is None:
            return b""
        if not self.byte_level:
            byte = _BYTE_TOKEN.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else str(text).replace(_SPACE, " ").encode()
        # A token that is not written in the stand-ins for bytes (an added one) stands for itself.
        known = all(character in self._bytes for character in text)
        return bytes(self._bytes[character] for character in text) if known else str(text).encode()


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    """Types of a decoder and of those that it is a sequence of."""
    if decoder is None:
        return set()
    return {str(decoder["type"])}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
