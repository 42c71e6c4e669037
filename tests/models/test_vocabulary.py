"""What tokens stand for, in bytes, for the two ways in which tokenizers write bytes."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from models.demo import CHECKPOINT
from models.vocabulary import Vocabulary
from tests.server.scripted import byte_tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "\u2581the": 1, "cat\u2581": 2, "<0xE2>": 3, "<0x0a>": 4, "é": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_every_byte_of_a_byte_level_tokenizer() -> None:
    vocabulary = Vocabulary(byte_tokenizer())
    assert vocabulary.byte_level
    assert [vocabulary.bytes_of(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_added_tokens_stand_for_themselves_and_unknown_ids_for_nothing() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("a \n\u00e9\u2028", special=False)])
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.bytes_of(258) == "a \n\u00e9\u2028".encode()
    assert vocabulary.bytes_of(100_000) == b""


def test_words_and_byte_tokens_of_a_sentencepiece_tokenizer() -> None:
    vocabulary = Vocabulary(sentencepiece())
    assert not vocabulary.byte_level
    found = [vocabulary.bytes_of(token) for token in range(1, 7)]
    assert found == [b" the", b"cat ", b"\xe2", b"\n", "é".encode(), b"<think>"]


@pytest.mark.parametrize("text", ["What is in the picture?", "naïve 😀 ﷽", " \n\t x"])
def test_the_bytes_of_a_text_s_tokens_are_the_text_s(text: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(CHECKPOINT))
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(vocabulary.bytes_of(token) for token in ids).decode() == text
