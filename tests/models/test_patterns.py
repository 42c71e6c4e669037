"""How far the repetitions of a pattern multiply."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.patterns import extent_of
from models.schema import MAX_NESTED_REPEATS, MAX_PATTERN_REPEATS, SchemaError, check_schema

EXTENTS = {
    "": (0, 1),
    "abc": (3, 1),
    "a{7}": (7, 1),
    "a{2,7}": (7, 1),
    "a{7,}": (7, 1),
    "a{,7}": (7, 1),
    "a{3}b{4}": (7, 1),
    "(ab){3}": (6, 1),
    "(a{3}b){4}": (16, 12),
    "((a{2}){3}){4}": (24, 24),
    "(a{3}b{5}){4}": (32, 20),
    "(a{3}){4}b{100}": (112, 12),
    "[a{9}]{2}": (2, 1),
    r"[\]{9}]{2}": (2, 1),
    r"\({9}": (9, 1),
    r"(a\){5}){2}": (12, 10),
    "((((a{2}": (2, 1),
    "a{2}))))": (6, 1),
    "{5}": (0, 1),
    "^(?:a{3}|b+)*$": (5, 1),
    "a{0}": (1, 1),
}


@pytest.mark.parametrize("pattern", EXTENTS)
def test_repetitions_add_up_beside_each_other_and_multiply_within(pattern: str) -> None:
    extent = extent_of(pattern)
    assert (extent.size, extent.nested) == EXTENTS[pattern]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="a(){}[]\\,0123456789|*?", max_size=60))
def test_any_text_has_an_extent(pattern: str) -> None:
    extent = extent_of(pattern)
    assert extent.size >= 0
    assert extent.nested >= 1


USEFUL = (
    r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$",
    r"^(25[0-5]|2[0-4]\d|1?\d{1,2})(\.(25[0-5]|2[0-4]\d|1?\d{1,2})){3}$",
    r"^[\w.+-]{1,64}@([a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}$",
    "^.{0,10000}$",
)


@pytest.mark.parametrize("pattern", USEFUL)
def test_patterns_of_daily_use_are_taken(pattern: str) -> None:
    check_schema({"type": "string", "pattern": pattern})


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("^(a{90}){100}$", str(MAX_NESTED_REPEATS)),
        ("a{6000}b{6000}", str(MAX_PATTERN_REPEATS)),
        ("a{" + "9" * 99 + "}", str(MAX_PATTERN_REPEATS)),
    ],
)
def test_others_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        check_schema({"type": "string", "pattern": pattern})
