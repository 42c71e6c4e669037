"""How refusals begin, by their words. A floor: what begins otherwise may be one too. Holds no torch."""

from __future__ import annotations

import re

# How a plain refusal begins, in lower case. "No problem" and "I can't see a dog" are none.
REFUSAL_OPENINGS = re.compile(
    r"\W*(?:no|nope)\s*(?:[.,!;:]|$)"
    r"|\W*(?:no\W+)?i(?:'m| am) (?:\w+ )?(?:sorry|unable|not able|not going|not willing|not comfortable)\b"
    r"|\W*(?:no\W+)?i (?:can't|cannot|can not|won't|will not|must decline|decline|refuse|don't feel comfortable)\b"
    r"(?! (?:see|find|read|hear)\b)"
)
_APOLOGIES = re.compile(r"\W*(?:sorry|i apologi[sz]e|my apologies)\b")

# Typographic apostrophes and spaces, and the plain ones that they stand for.
_PLAIN_MARKS = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u2032": "'", "\uff07": "'", "\u00a0": " "})

_WORD = re.compile(r"[\w']+")
REFUSAL_TOKENS = 16  # by which a refusal has begun, or does not; with less room it would end within its first sentence
FIRST_WORDS = 3  # of a refusal, by which another that begins like it is known


def plain_marks(text: str) -> str:
    """The text with plain apostrophes and spaces."""
    return text.translate(_PLAIN_MARKS)


def begins_refusal(text: str, own: str) -> bool:
    """Whether what there is of an answer begins as a refusal: a plain one, an apology, or as the text `own` does.

    Something follows on what begins: what is "No" now may be "No problem" next.
    """
    begun = plain_marks(text).lower().rstrip()
    found = REFUSAL_OPENINGS.match(begun) or _APOLOGIES.match(begun)
    if found is not None and found.end() < len(begun):
        return True
    first = _WORD.findall(plain_marks(own).lower())[:FIRST_WORDS]
    return bool(first) and _WORD.findall(begun)[: len(first)] == first
