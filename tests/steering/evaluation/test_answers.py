"""Right or wrong, where the right answer is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.evaluation.answers import LETTERS, Key, chosen_letter, is_right, with_choices

CITIES = ("Paris", "Rome", "Bern", "New York")


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        (" (B) ", "B"),
        ("**B**", "B"),
        ("B. Rome", "B"),
        ("B) Rome, I think", "B"),
        ("B\nbecause it is old", "B"),
        ("The answer is C.", "C"),
        ("Answer: (D)", "D"),
        ("I think the answer is option B", "B"),
        ("the answer is A. No, the answer is B", "B"),
        ("It must be Rome.", "B"),
        ("it is new york", "D"),
        ("A dog is what I see", None),  # an article, no choice
        ("Rome or Bern", None),  # two choices are no decision
        ("E", None),  # not one of four
        ("I do not know", None),
        ("", None),
    ],
)
def test_a_choice_is_read_from_what_is_said(output: str, letter: str | None) -> None:
    assert chosen_letter(output, CITIES) == letter


@given(st.sampled_from(LETTERS[:4]), st.sampled_from(["{}", "({})", "{}.", "**{}**", "{}) yes", "The answer is {}."]))
def test_every_way_to_write_a_letter_is_that_letter(letter: str, form: str) -> None:
    key = Key((letter,), "choice", CITIES)
    for other in LETTERS[:4]:
        assert is_right(key, form.format(other)) == (other == letter)


@pytest.mark.parametrize(
    ("accepted", "output", "right"),
    [
        (("a red apple",), "The red apple.", True),
        (("two",), "2", True),
        (("2",), "Two", True),
        (("24 cm",), "24 cm.", True),
        (("3.5",), "3.5", True),
        (("3.5",), "35", False),
        (("yes", "correct"), "Correct!", True),
        (("yes",), "yes and no", False),
        (("C",), "C. the left one", True),  # the question itself listed the choices
        (("C",), "B", False),
        (("red",), "", False),
    ],
)
def test_short_answers_forgive_spelling_and_nothing_else(accepted: tuple[str, ...], output: str, right: bool) -> None:
    assert is_right(Key(accepted), output) is right


def test_exact_answers_forgive_only_the_space_around_them() -> None:
    key = Key(("I see a red apple.",), "exact")
    assert is_right(key, " I see a red apple.\n")
    assert not is_right(key, "i see a red apple.")


def test_choices_are_listed_by_letter() -> None:
    assert with_choices("Where?", CITIES).splitlines()[:3] == ["Where?", "A. Paris", "B. Rome"]


@pytest.mark.parametrize(
    ("accepted", "choices"), [((), CITIES), (("E",), CITIES), (("AB",), CITIES), (("A",), ("only one",))]
)
def test_a_key_that_cannot_be_right_is_refused(accepted: tuple[str, ...], choices: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"answer"):
        Key(accepted, "choice", choices)
