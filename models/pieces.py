"""Tokenises the pieces of a prompt: the template's words with special tokens, the words of users without.

The template is rendered with sentinels in place of all texts; each text is then tokenised by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase

from models.errors import PromptError

PART = 16_384  # characters that are tokenised or searched at once
FAR = 2
# Private-use characters: in a rendering with sentinels there is no text of a user left that could contain them.
SENTINEL = "\ue0f0{}\ue0f1"
SENTINELS = re.compile("\ue0f0(\\d+)\ue0f1")


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every added token, special or not, save the blank ones: line breaks are added tokens of some families."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return {content: number for content, number in added.items() if not content.isspace()}


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that no user's words may turn into. The unknown token is one only where it doubles as another."""
    tokens = _special_tokens(tokenizer)
    others = {token for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"}
    if tokenizer.unk_token not in others:
        tokens.pop(str(tokenizer.unk_token), None)
    return frozenset(tokens.values())


class SpecialTokens:
    """Finds the added tokens that a text spells. Holds the interpreter's lock for no more than a part of it at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._longest_first = sorted(_special_tokens(tokenizer), key=len, reverse=True)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each, in order; of those that begin at the same place the longest."""
        present = [content for content in self._longest_first if content in text]
        if not present:
            return []
        pattern = re.compile("|".join(map(re.escape, present)))
        found: list[tuple[int, int]] = []
        begin = 0
        while begin < len(text):
            end = begin + PART
            for match in pattern.finditer(text, begin, end + len(present[0])):
                if match.start() >= end:
                    break
                found.append(match.span())
                end = max(end, match.end())
            begin = end
        return found

    def spelled(self, text: str) -> list[str]:
        """Each of them."""
        return [text[begin:end] for begin, end in self.places(text)]


class PieceTokenizer:
    """Tokenises a piece of a prompt: the template's words with special tokens, a user's words without.

    `control_ids`: tokens that no user's words turn into.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._plain = _backend(tokenizer, inert=False)
        self._inert = _backend(tokenizer, inert=True)
        self._special = SpecialTokens(tokenizer)
        self.control_ids = _control_ids(tokenizer)
        self._newline = {id(each): _ids(each, "\n") for each in (self._plain, self._inert)}
        self.prefix, self.suffix = _frame(tokenizer)

    def template(self, text: str, *, first: bool) -> list[int]:
        """Ids of the template's words; the special tokens in them count."""
        return _ids(self._plain, text) if first else self._inside(self._plain, text)

    def user(self, text: str, *, first: bool) -> list[int]:
        """Ids of a user's words, none of them special."""
        ids = _ids(self._inert, text) if first else self._inside(self._inert, text)
        if self.control_ids.isdisjoint(ids):
            return ids
        return self._broken(text)

    def exceed(self, texts: Sequence[str], tokens: int, *, special: bool) -> bool:
        """Whether texts have far more tokens than so many; no more of them is tokenised than that takes.

        `special`: whether special tokens in them count as such.
        """
        if sum(map(len, texts)) <= tokens:
            return False  # or nearly so, and tokenised soon: a prompt need not be tokenised twice
        backend, found = self._plain if special else self._inert, 0
        for text in texts:
            for begin in range(0, len(text), PART):
                found += len(_encoded(backend, text[begin : begin + PART]))
                if found > FAR * tokens:  # where a text is cut, some tokens are cut in two
                    return True
        return False

    def _broken(self, text: str) -> list[int]:
        """For vocabularies whose ordinary merges spell a special token: break each one after its first character."""
        pieces: list[str] = []
        last = 0
        for begin, end in self._special.places(text):
            pieces += [text[last : begin + 1], text[begin + 1 : end]]
            last = end
        pieces.append(text[last:])
        ids = [number for piece in pieces if piece for number in self._inside(self._inert, piece)]
        if not self.control_ids.isdisjoint(ids):
            raise PromptError("a text holds a special token of the model that cannot be written as plain text")
        return ids

    def _inside(self, backend: Tokenizer, text: str) -> list[int]:
        # After a line break, which is then cut off: SentencePiece puts a space before the first word of a string.
        newline = self._newline[id(backend)]
        ids = _ids(backend, "\n" + text)
        if newline and ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return _ids(backend, text)


def _backend(tokenizer: PreTrainedTokenizerBase, *, inert: bool) -> Tokenizer:
    """An own copy of the Rust tokenizer, so that no setting is shared; `inert` ones match no added token."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    if inert:
        for token in state["added_tokens"]:
            token["special"] = True
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = inert
    return backend


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return list(_encoded(backend, text).ids)


def _encoded(backend: Tokenizer, text: str) -> Encoding:
    # Unlike `encode`, this does not hold the interpreter's lock.
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
    return encoding


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text (such as a BOS token)."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a")
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise AssertionError(f"{full} does not contain {bare}")


class SentinelTokenizer:
    """Stands in for the processor's tokenizer in one call: tokenises between the sentinels, and the texts inertly."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: PieceTokenizer, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._texts = texts

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | Sequence[str], **options: Any) -> _PieceEncoding:  # noqa: ANN401
        samples = [text] if isinstance(text, str) else text
        ids = [self._encode(sample, framed=options.get("add_special_tokens", True)) for sample in samples]
        return _PieceEncoding({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})

    def _encode(self, sample: str, *, framed: bool) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(SENTINELS.split(sample)):  # words, number, words, number, ..., words
            if not piece:
                continue
            encode: Callable[..., list[int]] = self._pieces.user if place % 2 else self._pieces.template
            ids += encode(self._texts[int(piece)] if place % 2 else piece, first=not ids)
        return [*self._pieces.prefix, *ids, *self._pieces.suffix] if framed else ids


class _PieceEncoding(BatchEncoding):  # type: ignore[misc]
    """Has no character offsets; the processors that ask use them only for token types, which we count ourselves."""

    def char_to_token(self, *_args: int) -> int:
        return 0
