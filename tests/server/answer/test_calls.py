"""Calls within answers, parsed: whatever pieces they come in, text is text and calls have their names and arguments."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from models.call_grammar import CallGrammar
from models.calls import ARGUMENTS, ENVELOPE, FAMILIES, CallSyntax
from server.answer.calls import Calls
from server.answer.delta import Delta, Kind, merged
from server.answer.detokenizer import Detokenizer
from server.answer.parser import SEPARATOR
from server.answer.text_decoder import TextDecoder
from tests.models.test_calls import said
from tests.server.scripted import byte_tokenizer

NAMES = ("weather", "weather_now", "w")
FUNCTIONS: dict[str, dict[str, Any]] = {name: {"type": "object"} for name in NAMES}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(['"}]', "\\", "</tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=4), VALUES, max_size=3).map(json.dumps)),
    min_size=1,
    max_size=3,
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["<tool_", "Let me.\n", "a <tool_call", "[TOOL_CALLS", '{"name": "x', "\n"]
)
PARTS = st.lists(st.integers(1, 9), max_size=40)


Told = list[tuple[Kind, str]]


def parsed(grammar: CallGrammar, text: str, sizes: list[int]) -> Told:
    """The deltas of a text that comes in pieces of these sizes, and of the rest at once, neighbours joined."""
    parser, deltas = Calls(grammar), list[Delta]()
    for size in [*sizes, len(text)]:
        piece, text = text[:size], text[size:]
        if piece:
            deltas += parser.push(piece, ())
    deltas += parser.finish()
    assert all(delta.text for delta in deltas)
    return [(delta.kind, delta.text) for delta in merged(deltas)]


def expected(calls: list[tuple[str, str]], text: str = "") -> Told:
    told = [(Kind.TEXT, text)] if text else []
    for name, arguments in calls:
        told += [(Kind.CALL, name), (Kind.ARGUMENTS, arguments)]
    return told


@given(family=st.sampled_from([*FAMILIES]), text=TEXTS, calls=CALLS, sizes=PARTS)
def test_text_and_calls_are_told_whatever_pieces_they_come_in(
    family: str, text: str, calls: list[tuple[str, str]], sizes: list[int]
) -> None:
    syntax = FAMILIES[family]
    if syntax.between is None:
        text, calls = "", calls[:1]
    elif any(trigger and trigger in text for trigger in syntax.triggers):
        return
    found = parsed(CallGrammar(syntax, FUNCTIONS), said(syntax, *calls, text=text), sizes)
    assert found == expected(calls, text.rstrip(" \t\r\n"))


@given(family=st.sampled_from([*FAMILIES]), text=TEXTS, sizes=PARTS)
def test_a_text_without_a_call_is_told_as_it_is(family: str, text: str, sizes: list[int]) -> None:
    syntax = FAMILIES[family]
    if not any(trigger and trigger in text for trigger in syntax.triggers):
        assert "".join(told for _, told in parsed(CallGrammar(syntax, FUNCTIONS), text, sizes)) == text


@given(family=st.sampled_from([*FAMILIES]), text=TEXTS, calls=CALLS, cut=st.integers(0, 200), sizes=PARTS)
def test_an_answer_that_is_cut_is_the_beginning_of_one(
    family: str, text: str, calls: list[tuple[str, str]], cut: int, sizes: list[int]
) -> None:
    syntax = FAMILIES[family]
    calls = calls if syntax.between is not None else calls[:1]
    grammar = CallGrammar(syntax, FUNCTIONS)
    whole = said(syntax, *calls, text=text)
    told, all_of_it = ([(kind, said) for kind, said in parsed(grammar, each, sizes) if kind is not Kind.TEXT]
                       for each in (whole[:cut], whole))  # fmt: skip
    assert told[:-1] == all_of_it[: len(told[:-1])]
    assert not told or all_of_it[len(told) - 1][1].startswith(told[-1][1])


@given(syntax=st.sampled_from([*FAMILIES.values(), ENVELOPE]), calls=CALLS, sizes=PARTS)
def test_forced_calls(syntax: CallSyntax, calls: list[tuple[str, str]], sizes: list[int]) -> None:
    calls = calls if syntax.between is not None else calls[:1]
    grammar = CallGrammar(syntax, FUNCTIONS, forced=True)
    whole = said(syntax, *calls)
    assert parsed(grammar, whole, sizes) == expected(calls)
    assert parsed(grammar, whole[: len(syntax.triggers[-1]) + 3], sizes) == []  # no name yet: no text either


def test_arguments_alone_are_a_call_of_the_one_function() -> None:
    grammar = CallGrammar(ARGUMENTS, {"weather": {}}, several=False, forced=True)
    assert parsed(grammar, '{"a":"}"}', [1, 1, 1]) == expected([("weather", '{"a":"}"}')])


def test_json_that_spells_a_call_is_none() -> None:
    call = said(FAMILIES["hermes"], ("w", "{}"))
    grammar = CallGrammar(FAMILIES["hermes"], FUNCTIONS, answer={"type": "array"})
    assert parsed(grammar, json.dumps([call]), []) == [(Kind.TEXT, json.dumps([call]))]
    assert parsed(grammar, call, []) == expected([("w", "{}")])


def test_text_is_told_as_soon_as_it_cannot_become_a_call() -> None:
    parser = Calls(CallGrammar(FAMILIES["hermes"], FUNCTIONS))
    assert [[delta.text for delta in parser.push(piece, ())] for piece in ("It is ", "<b>", " 3", "\n<tool", "s")] == [
        ["It is"], [" <b>"], [" 3"], [], ["\n<tools"],
    ]  # fmt: skip


def test_what_follows_on_the_guard_s_intervention_is_set_apart_from_text_and_not_from_a_call() -> None:
    silent, talking, calling = (Calls(CallGrammar(FAMILIES["hermes"], FUNCTIONS)) for _ in range(3))
    talking.push("It is", ())
    calling.push("It is" + said(FAMILIES["hermes"], ("w", "{}")), ())
    assert [[delta.text for delta in each.apart()] for each in (silent, talking, calling)] == [[], [SEPARATOR], []]


def test_special_tokens_that_mark_calls_are_seen_and_others_are_not() -> None:
    tokenizer = deepcopy(byte_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]", "<|x|>"]})
    marks = dict(enumerate(["[TOOL_CALLS]", "[ARGS]"], start=len(tokenizer) - 3))
    text = "é[TOOL_CALLS]weather[ARGS]{}"
    detokenizer = Detokenizer(TextDecoder(tokenizer), marks)
    ids = [*tokenizer.encode(text), len(tokenizer) - 1]
    assert "".join([detokenizer.push(token) for token in ids]) + detokenizer.finish() == text
