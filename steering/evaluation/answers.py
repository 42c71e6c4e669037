"""Whether an answer is right, where the right one is known: exact words, a short answer, or one of several choices."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LETTERS = string.ascii_uppercase
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_OPENING = re.compile(r"^[\W_]*([A-Z])[\W_]*(?:[.):,*\n]|$)")  # "B", "(B)", "B. Paris", "**B**"; not "A dog"
_CONCLUDED = re.compile(r"\banswer(?:\s+is|\s*:)\s*[\W_]*(?:option\s+)?[\W_]*([A-Z])\b", re.IGNORECASE)


@dataclass(frozen=True)
class Key:
    """What counts as right: any of `accepted`; with `choices`, the letters of the right ones."""

    accepted: tuple[str, ...]
    style: Literal["exact", "short", "choice"] = "short"
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.accepted:
            raise ValueError("a question with a known answer needs at least one")
        if self.style == "choice":
            known = LETTERS[: len(self.choices)]
            wrong = [letter for letter in self.accepted if letter not in known or len(letter) != 1]
            if len(self.choices) < 2 or wrong:
                raise ValueError(f"the answer {wrong or self.accepted} is not a letter of {len(self.choices)} choices")


def with_choices(text: str, choices: Sequence[str]) -> str:
    """A question with its choices by letter, and what kind of answer is wanted."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([text, *lines, "Reply with the letter of the right choice alone."])


def is_right(key: Key, output: str) -> bool:
    """Whether an output is right. One that names no choice is wrong, never a guess."""
    if key.style == "exact":
        return output.strip() in key.accepted
    if key.style == "choice":
        return chosen_letter(output, key.choices) in key.accepted
    if _plain(output) in map(_plain, key.accepted):
        return True
    # Sets such as RealWorldQA write the choices into the question and expect a letter.
    return any(len(accepted) == 1 and chosen_letter(output, ()) == accepted for accepted in key.accepted)


def chosen_letter(output: str, choices: Sequence[str]) -> str | None:
    """The letter that an output decides on: at its start, after "the answer is", or as the text of one choice alone."""
    known = LETTERS[: len(choices)] if choices else LETTERS
    found = [match[1] for match in (_OPENING.match(output.strip()),) if match]
    found += [letter.upper() for letter in _CONCLUDED.findall(output)[-1:]]
    if letters := [letter for letter in found if letter in known]:
        return letters[0]
    said = f" {_plain(output)} "
    named = [letter for letter, choice in zip(LETTERS, choices, strict=False) if f" {_plain(choice)} " in said]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    """Lower case without articles, punctuation and white space; number words as digits."""
    words = _ARTICLE.sub(" ", "".join(c if c.isalnum() or c in ".%" else " " for c in text.lower())).split()
    return " ".join(str(NUMBERS.index(word)) if (word := each.strip(".")) in NUMBERS else word for each in words)
