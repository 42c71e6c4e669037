"""Pieces of prompts: special tokens are found as a plain search finds them, and long texts hold nobody up."""

from __future__ import annotations

import re
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import pieces
from models.demo import CHECKPOINT
from models.errors import PromptTooLong
from models.inputs import InputBuilder
from models.load import load_inputs
from models.pieces import PieceTokenizer, SpecialTokens
from tests.server.fakes import as_any
from tests.server.scripted import byte_tokenizer

CONTENTS = ["<a>", "<a><b>", "<", "ab", "b<a", "cc"]


def special(contents: list[str]) -> SpecialTokens:
    decoder = {number: SimpleNamespace(content=content) for number, content in enumerate(contents)}
    return SpecialTokens(as_any(SimpleNamespace(added_tokens_decoder=decoder)))


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="<>abc x", max_size=60),
    contents=st.lists(st.sampled_from(CONTENTS), unique=True, max_size=6),
    part=st.integers(1, 20),
)
def test_special_tokens_are_found_in_parts_as_in_the_whole(text: str, contents: list[str], part: int) -> None:
    longest_first = "|".join(map(re.escape, sorted(contents, key=len, reverse=True)))
    before = pieces.PART
    pieces.PART = part
    try:
        found = special(contents).spelled(text)
    finally:
        pieces.PART = before
    assert found == re.findall(longest_first or "(?!)", text)


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return load_inputs(str(CHECKPOINT))[0]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of each text that is tokenised from now on."""
    characters: list[int] = []
    encoded = pieces._encoded

    def counting(backend: Any, text: str) -> Any:
        characters.append(len(text))
        return encoded(backend, text)

    monkeypatch.setattr(pieces, "_encoded", counting)
    return characters


@pytest.mark.parametrize(
    "text", ["word " * 200_000, "a" * 1_000_000, "\N{GRINNING FACE}" * 1_000_000, "<image>" * 150_000]
)
def test_a_text_far_beyond_the_context_is_refused_after_its_first_parts(
    builder: InputBuilder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    characters = counted(monkeypatch)
    with pytest.raises(PromptTooLong, match="2048 tokens"):
        builder.build([{"role": "user", "content": text}], [])
    with pytest.raises(PromptTooLong, match="2048 tokens"):
        builder.build_text(text)
    assert sum(characters) <= 6 * pieces.PART


def test_special_tokens_that_a_text_spells_are_counted_as_its_characters(builder: InputBuilder) -> None:
    text = "<image>" * 2000  # as many tokens, were they what they spell
    with pytest.raises(PromptTooLong):
        builder.build([{"role": "user", "content": text}], [])


def test_a_text_a_little_beyond_the_context_is_counted_in_full(builder: InputBuilder) -> None:
    assert len(builder.build_text("a" * 3000).ids) == 3000
    assert len(builder.build([{"role": "user", "content": "a" * 3000}], []).ids) > 3000


def test_tokenising_holds_no_lock() -> None:
    tokenizer = PieceTokenizer(byte_tokenizer())
    started = threading.Event()
    over: list[str] = []

    def work() -> None:
        started.set()
        pieces._encoded(tokenizer._inert, "a" * 500_000)
        over.append("tokenised")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread runs until it gives the lock away
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        others_ran_meanwhile = not over
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert others_ran_meanwhile
