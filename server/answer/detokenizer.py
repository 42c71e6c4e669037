"""Token ids -> text, one token at a time, never showing a broken character or any part of a stop string.

What has been returned, put together, is `tokenizer.decode(ids, skip_special_tokens=True)` of all ids, cut at the stop
string. Three stages, each holding back what a later token could still change: `_Joined` or `_Window` (characters split
over tokens), `_CleanUp` (only for tokenizers that tidy spaces), `_StopScan`.
"""

from __future__ import annotations

import json
import re
from codecs import utf_8_decode
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
        """What does the work."""

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


class Detokenizer:
    """One request's text. `push` every token, then `finish`; once `stopped`, both return nothing more."""

    def __init__(self, decoder: TextDecoder, stops: Sequence[str] = ()) -> None:
        self._source = _Joined(decoder) if decoder.joins else _Window(decoder)
        self._clean_up = _CleanUp(decoder) if decoder.cleans_up else None
        self._scan = _StopScan(stops) if stops else None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self._scan is not None and self._scan.stopped

    def push(self, token: int) -> str:
        """The text that is certain now, after one more token; often empty."""
        return self._pass_on(self._source.push(token), last=False)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return self._pass_on(self._source.finish(), last=True)

    def _pass_on(self, text: str, *, last: bool) -> str:
        if self._clean_up is not None:
            text = self._clean_up.push(text, last=last)
        return text if self._scan is None else self._scan.push(text, last=last)


class _Joined:
    """Joins what the tokens stand for: a look-up for a token that is whole characters."""

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._text_of = decoder.text_of
        self._held = bytearray()  # what may be a part of a character
        self._strips = decoder.strips

    def push(self, token: int) -> str:
        text = self._text_of(token)
        if text is None:
            text = self._more(self._decoder.bytes_of(token))
        elif self._held and text:
            text = self._rest() + text
        return self._stripped(text) if self._strips and text else text

    def finish(self) -> str:
        text = self._rest()
        return self._stripped(text) if self._strips else text

    def _more(self, data: bytes) -> str:
        self._held += data
        if not self._decoder.vocabulary.byte_level:
            return ""  # as long as the run of bytes goes on, it may be broken as a whole
        text, used = utf_8_decode(self._held, "replace", False)
        del self._held[:used]
        return text

    def _rest(self) -> str:
        held, self._held = self._held, bytearray()
        try:
            return held.decode()
        except UnicodeDecodeError:
            return held.decode(errors="replace") if self._decoder.vocabulary.byte_level else BROKEN * len(held)

    def _stripped(self, text: str) -> str:
        self._strips = False
        return text.removeprefix(" ")


class _Window:
    """Decodes the latest tokens only, with enough of those before them as context: amortised O(1) per token."""

    SIZE = 24

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._sent = 0  # characters of the window's text already returned
        self._limit = self.SIZE

    def push(self, token: int) -> str:
        if token in self._decoder.special:
            return ""
        self._ids.append(token)
        if token in self._decoder.bytes:
            return ""
        text = self._decoder.decode(self._ids)
        # The last character may be the beginning of one that is not there yet. Those before it are settled.
        new = self._take(text, len(text) - text.endswith(BROKEN))
        if len(self._ids) >= self._limit:
            self._shrink(text)
        return new

    def finish(self) -> str:
        text = self._decoder.decode(self._ids)
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        new = text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _shrink(self, text: str) -> None:
        """Forget the older tokens, cut where neither half needs the other to be read."""
        for cut in range(len(self._ids) // 2, len(self._ids)):
            head, tail = self._decoder.decode(self._ids[:cut]), self._decoder.decode(self._ids[cut:])
            # Some decoders drop the space in front of the first token.
            if tail and text in (head + tail, f"{head} {tail}") and len(text) - self._sent <= len(tail):
                self._ids = self._ids[cut:]
                self._sent -= len(text) - len(tail)
                self._limit = self.SIZE
                return
        self._limit *= 2


class _CleanUp:
    """Tidies spaces as the tokenizer does, in pieces.

    All its patterns are at most 4 characters, begin with a space and, but for " ' ", hold no other. So the text may be
    cut where the last 4 characters hold no space, or in front of a space that follows neither a space nor "'".
    """

    LONGEST = 4

    def __init__(self, decoder: TextDecoder) -> None:
        self._decoder = decoder
        self._held = ""

    def push(self, text: str, *, last: bool) -> str:
        text = self._held + text
        cut = len(text) if last else self._cut(text)
        self._held = text[cut:]
        return self._decoder.clean_up(text[:cut])

    def _cut(self, text: str) -> int:
        if " " not in text[-self.LONGEST :]:
            return len(text)
        cut = text.rfind(" ")
        while cut > 0 and text[cut - 1] in "' ":
            cut = text.rfind(" ", 0, cut)
        return max(cut, 0)


class _StopScan:
    """Cuts at the stop string whose end comes first, and holds back what could become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = 0 if last else max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
