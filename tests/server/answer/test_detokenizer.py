"""Text in pieces equals the text in whole: over broken UTF-8, several kinds of tokenizer, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from server.answer.detokenizer import Detokenizer, _CleanUp
from server.answer.stop_scan import StopScan
from server.answer.text_decoder import BROKEN, TextDecoder
from tests.examples import examples
from tests.server.scripted import EOS, SECRET_SPECIAL, byte_tokenizer

PROSE = "Ein Bär trägt 3 rote Äpfel — “wirklich”? 熊が赤いリンゴを三つ運ぶ 🐻🍎🍎🍎 don't 👩‍👩‍👧 \t\n  x"


def merged_tokenizer() -> Any:
    """Byte-level BPE with merges that join and split characters anywhere."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    # Shifted by single bytes, so that merges cross the borders of characters.
    tokenizer.train_from_iterator([PROSE * 3, *(PROSE[i:] for i in range(20))], trainer)
    tokenizer.add_tokens(["<plain added>", "ä"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece_tokenizer() -> Any:
    """Llama's kind: a space in front of words, bytes for what is not in the vocabulary."""
    pieces = ["<s>", "▁", "▁the", "▁a", "cat", "▁cat", "s", "▁▁", ".", "▁.", "é", "字", "\ufffd"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace_tokenizer() -> Any:
    pieces = ["<s>", "▁", "▁the", "▁a", "cat", "▁cat", "s", "▁▁", "."]
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tidying_tokenizer() -> Any:
    """Words joined by spaces, which are then tidied around punctuation."""
    words = [
        "[UNK]",
        "do",
        "n't",
        "it",
        "'s",
        "'",
        "s",
        ".",
        "?",
        "!",
        ",",
        "'ve",
        "'re",
        "'m",
        "##ing",
        "we",
        "n",
        " ",
        "é",
    ]
    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocab={w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "merged": merged_tokenizer(),
    "sentencepiece": sentencepiece_tokenizer(),
    "metaspace": metaspace_tokenizer(),
    "tidying": tidying_tokenizer(),
}
DECODERS = {name: TextDecoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def windowed(tokenizer: Any) -> TextDecoder:
    """Takes nothing for granted of how the tokenizer decodes."""
    decoder = TextDecoder(tokenizer)
    decoder.joins = False
    return decoder


WINDOWED = {name: windowed(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def pieces(name: str, ids: Sequence[int], stops: Sequence[str] = (), *, window: bool = False) -> list[str]:
    detokenizer, scan = Detokenizer((WINDOWED if window else DECODERS)[name]), StopScan(stops)
    found = []
    for token in ids:
        found.append(scan.push(detokenizer.push(token)))
        if scan.stopped:
            return found
    return [*found, scan.push(detokenizer.finish()) + scan.finish()]


def whole(name: str, ids: Sequence[int]) -> str:
    text: str = TOKENIZERS[name].decode(list(ids), skip_special_tokens=True)
    return text


def cut(text: str, stops: Sequence[str]) -> str:
    """The slow way: grow the text until it holds a stop string."""
    for end in range(len(text) + 1):
        starts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


some_bytes = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=25).map(lambda text: text.encode()),
    st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0x41, 0x20, 0xC3]), max_size=90).map(
        bytes
    ),
)


@examples(3)
@given(some_bytes, st.lists(st.integers(0, 30), max_size=3))
@example(b"\xff" * 200, [])
@example("🐻".encode() * 60, [])
def test_random_bytes(data: bytes, specials: list[int]) -> None:
    ids = list(data)
    for at in specials:
        ids.insert(at, SECRET_SPECIAL if at % 2 else EOS)
    assert whole("bytes", ids) == data.decode(errors="replace")
    for window in (False, True):
        assert "".join(pieces("bytes", ids, window=window)) == whole("bytes", ids)


@examples(1.5)
@given(st.data(), st.sampled_from(["merged", "sentencepiece", "metaspace", "tidying"]))
def test_random_tokens(data: st.DataObject, name: str) -> None:
    ids = data.draw(st.lists(st.integers(0, len(TOKENIZERS[name]) - 1), max_size=80))
    for window in (False, True):
        assert "".join(pieces(name, ids, window=window)) == whole(name, ids)


@examples(1.5)
@given(st.lists(st.integers(0, 12), max_size=80))
def test_words_without_bytes(ids: list[int]) -> None:
    for window in (False, True):
        assert "".join(pieces("sentencepiece", ids, window=window)) == whole("sentencepiece", ids)


@examples(1.5)
@given(st.text("ab c€", max_size=40), st.lists(st.text("ab c€", min_size=1, max_size=5), min_size=1, max_size=4))
@example("abcabd", ["abd"])
@example("xabcd", ["abcd", "bc"])
def test_stop_strings_over_any_tokens(text: str, stops: list[str]) -> None:
    found = "".join(pieces("bytes", list(text.encode()), stops))
    assert found == cut(text, stops)
    assert not any(stop in found for stop in stops)


@given(some_bytes, st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4))
def test_stop_strings_over_broken_text(data: bytes, stops: list[str]) -> None:
    assert "".join(pieces("bytes", list(data), stops)) == cut(data.decode(errors="replace"), stops)


@pytest.mark.parametrize("stop", ["STOP", "\n\n", "🐻", "é"])
def test_no_character_of_a_stop_string_is_ever_shown(stop: str) -> None:
    for split in range(len(stop.encode())):
        data = ("say " + stop).encode()
        shown = ""
        for piece in pieces("bytes", list(data[: len(data) - split]), [stop])[:-1]:
            shown += piece
        assert shown == "say "


@examples(1.5)
@given(st.lists(st.text(" 'ntsmver.!x", max_size=6), max_size=12))
@example(["x ", " ", "' s"])
def test_spaces_are_tidied_in_pieces_as_in_whole(texts: list[str]) -> None:
    decoder = DECODERS["tidying"]
    assert decoder.cleans_up
    clean_up = _CleanUp(decoder)
    found = [clean_up.push(text, last=False) for text in texts] + [clean_up.push("", last=True)]
    assert "".join(found) == decoder.clean_up("".join(texts))


def test_transformers_ignores_the_tidying_of_bpe_and_so_do_we() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    ids = list(b"well , do n't !")
    detokenizer = Detokenizer(TextDecoder(tokenizer))
    assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == tokenizer.decode(ids) == "well , do n't !"


def test_a_character_is_shown_as_soon_as_it_is_whole() -> None:
    assert pieces("bytes", list("aé🐻".encode())) == ["a", "", "é", "", "", "", "🐻", ""]
    assert pieces("bytes", [0x61, 0xE2, 0x82]) == ["a", "", "", BROKEN]


def test_decoders_that_only_join_are_known_from_those_that_do_more() -> None:
    joining = {name for name, decoder in DECODERS.items() if decoder.joins}
    assert joining == {"bytes", "merged", "sentencepiece"}
    unknown = sentencepiece_tokenizer()
    unknown.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert not TextDecoder(unknown).joins


def test_nothing_after_a_stop_string() -> None:
    scan = StopScan(["b"])
    assert [scan.push(text) for text in "abc"] == ["a", "", ""]
    assert (scan.stopped, scan.finish()) == (True, "")


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("bytes", [0xFF] * 4000),
        ("bytes", list((PROSE * 40).encode())),
        ("merged", [i % 400 for i in range(4000)]),
        ("sentencepiece", [2 + i % 5 for i in range(4000)]),
        ("sentencepiece", [13 + i % 256 for i in range(4000)]),
        ("sentencepiece", [1] * 4000),
        ("metaspace", [2, 4] * 2000),
        ("tidying", [1, 2, 8] * 1300),
    ],
)
def test_a_window_s_work_grows_with_the_text_and_not_with_its_square(name: str, ids: list[int]) -> None:
    decoded = 0

    class Counting(TextDecoder):
        def decode(self, ids: Sequence[int]) -> str:
            nonlocal decoded
            decoded += len(ids)
            return super().decode(ids)

    decoder = Counting(TOKENIZERS[name])
    decoder.joins = False
    detokenizer = Detokenizer(decoder)
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.finish()
    assert text == whole(name, ids)
    assert decoded <= 40 * len(ids)
