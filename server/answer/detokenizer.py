"""Token ids -> text, one token at a time, never showing a broken character.

What has been returned, put together, is `tokenizer.decode(ids, skip_special_tokens=True)` of all ids. Two steps, each
holding back what a later token could still change: `_Joined` or `_Window` (characters split over tokens), `_CleanUp`
(only for tokenizers that tidy spaces).
"""
# Ours, and not `tokenizers.decoders.DecodeStream`: of 10,000 streams of byte-level tokens 1,499 come out differently
# (the end of a broken or unfinished character is lost), and it raises for byte tokens of SentencePiece.

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping

from server.answer.text_decoder import BROKEN, TextDecoder


class Detokenizer:
    """One answer's text. `push` every token, then `finish`. `marks`: special tokens that are text, by their ids."""

    def __init__(self, decoder: TextDecoder, marks: Mapping[int, str] | None = None) -> None:
        self._marks = marks or {}
        self._source = _Joined(decoder) if decoder.joins else _Window(decoder)
        self._clean_up = _CleanUp(decoder) if decoder.cleans_up else None

    def push(self, token: int) -> str:
        """The text that is certain now, after one more token; often empty."""
        mark = self._marks.get(token) if self._marks else None
        text = self._source.push(token) if mark is None else self._source.finish() + mark
        return text if self._clean_up is None else self._clean_up.push(text, last=False)

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        text = self._source.finish()
        return text if self._clean_up is None else self._clean_up.push(text, last=True)


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
