"""What a tokenizer's tokens stand for, and how it joins them: worked out once for all requests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from models.vocabulary import Vocabulary

BROKEN = "\ufffd"  # what decoders show for an incomplete or invalid byte sequence
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The decoders, as `tokenizers` writes them, that join what each token stands for, and do nothing else but STRIP.
SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}  # a space in front of everything


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    clean_up_tokenization_spaces: bool

    @property
    def backend_tokenizer(self) -> Any:  # noqa: ANN401  of the library `tokenizers`
        """The tokenizer of the library `tokenizers` that does the work."""

    @property
    def added_tokens_decoder(self) -> dict[int, object]:
        """Added tokens by id."""

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""

    def clean_up_tokenization(self, text: str) -> str:
        """Tidy the spaces of decoded text."""


class TextDecoder:
    """A tokenizer's decoding, with what streaming has to know of it worked out once. Shared by all requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(i for i, token in added.items() if getattr(token, "special", False))
        # Byte-fallback tokens decode as a whole run: one bad byte turns all of its run into BROKEN.
        self.bytes = frozenset(i for token, i in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token))
        self.cleans_up = tokenizer.clean_up_tokenization_spaces and not _ignores_clean_up(tokenizer)
        steps = _steps(tokenizer)
        self.joins = [step["type"] for step in steps] == ["ByteLevel"] or steps in (
            SENTENCEPIECE,
            [*SENTENCEPIECE, STRIP],
        )
        self.strips = STRIP in steps
        self.bytes_of = lru_cache(maxsize=None)(self.vocabulary.bytes_of)
        self.text_of = lru_cache(maxsize=None)(self._text_of)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that hold no special token, before any tidying of spaces."""
        text: str = self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _text_of(self, token: int) -> str | None:
        """A token's text, where it is the same whatever stands beside it."""
        if token in self.special:
            return ""
        if token in self.bytes and not self.vocabulary.byte_level:
            return None
        try:
            return self.bytes_of(token).decode()
        except UnicodeDecodeError:
            return None

    def clean_up(self, text: str) -> str:
        """The tokenizer's tidying of spaces."""
        return self._tokenizer.clean_up_tokenization(text)


def _steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What the tokenizer's decoder does, one after the other."""
    decoder = tokenizer.backend_tokenizer.decoder
    state: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    return steps


def _ignores_clean_up(tokenizer: Tokenizer) -> bool:
    """Whether transformers ignores the setting, as it does for BPE unless told twice."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    insists = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return type(getattr(backend, "model", None)).__name__ == "BPE" and not insists
