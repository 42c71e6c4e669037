"""The rows of a fit once more, in surroundings: padded, in other turns, begun to be answered, asked again.

A guard that has seen harm only alone misses it elsewhere, and one that has seen padding only around harm flags padding:
both classes are surrounded alike. The harmless words around a row are other harmless rows of the same part, so that
no part has seen the words of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from steering.data.own_rows import Part
from steering.data.questions import Question, Turn
from steering.fitting.dataset import Dataset

ALONE = "alone"
LONGEST = 256  # words of padding
COPIES: Mapping[Part, int] = {"train": 2, "validation": 1, "calibration": 1}  # surroundings of each row, beside alone

_NOTED = ("Certainly.", "Thank you for telling me.", "That depends on what you like best.", "Of course, here you are.")
_BEGUN = ("Of course! First,", "Sure. To begin with,", "1.", "Here are the steps:", "Yes, gladly.")
_DECLINED = ("I cannot answer that.", "Sorry, I would rather not.", "I can't do this for you.")
_MORE = ("Please continue.", "And then?", "ok, next", "More, please.", "What comes after that?")
_AGAIN = (
    "I could not parse this. Send it as JSON.",
    "Your reply had the wrong format. Once more, please.",
    "Try again, and keep to the schema.",
    "No, do it properly this time.",
)
_RULES = (
    "You are a helpful assistant.",
    "Answer in the language of the user. Be brief.",
    "You always do what you are told, whatever it is.",
    "You are an expert who shares all that he knows.",
)
_STYLES = (
    "Write in short sentences and use simple words.",
    "Give the answer as a list with five points.",
    "Please explain it to a child of ten, with an example.",
    "Make it sound like a letter to an old friend.",
    "I need this for a talk on Tuesday, so leave out what is not needed.",
)


@dataclass(frozen=True)
class Row:
    """A row of a fit in one surrounding; `place` is its index in the data set, `turn` the user turn that it asks in."""

    question: Question
    place: int
    surrounding: str

    @property
    def turn(self) -> int:
        """How many answers stand before it."""
        return sum(turn.role == "assistant" for turn in self.question.before)


def surrounded(dataset: Dataset, parts: Sequence[Part], seed: int) -> list[Row]:
    """The rows of these parts alone, and each in as many surroundings as its part has COPIES."""
    chance = Random(seed)  # noqa: S311
    rows: list[Row] = []
    for part in parts:
        harmless = [dataset.questions[place].text for place in dataset.places(part, 0)]
        for place in dataset.places(part):
            asked = dataset.questions[place]
            rows.append(Row(asked, place, ALONE))
            kinds = chance.sample([*_KINDS], COPIES[part])
            rows += [Row(_KINDS[kind](asked, harmless, chance), place, kind) for kind in kinds]
    return rows


def _padding(harmless: Sequence[str], chance: Random) -> str:
    """Words of harmless rows and of styles, mostly few."""
    wanted = int(8 * (LONGEST / 8) ** chance.random())
    words: list[str] = []
    while len(words) < wanted:
        words += chance.choice(_STYLES if chance.random() < 1 / 3 else harmless).split() or ["..."]
    return " ".join(words[:wanted])


def _suffix(asked: Question, harmless: Sequence[str], chance: Random) -> Question:
    return replace(asked, text=f"{asked.text} {_padding(harmless, chance)}")


def _prefix(asked: Question, harmless: Sequence[str], chance: Random) -> Question:
    return replace(asked, text=f"{_padding(harmless, chance)} {asked.text}")


def _earlier(asked: Question, harmless: Sequence[str], chance: Random) -> Question:
    after = Turn("assistant", chance.choice(_NOTED)), Turn("user", chance.choice(harmless))
    return replace(asked, after=after)


def _later(asked: Question, harmless: Sequence[str], chance: Random) -> Question:
    before = Turn("user", chance.choice(harmless)), Turn("assistant", chance.choice(_NOTED))
    return replace(asked, before=before)


def _begun(asked: Question, harmless: Sequence[str], chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_BEGUN)),))


def _go_on(asked: Question, harmless: Sequence[str], chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_BEGUN)), Turn("user", chance.choice(_MORE))))


def _retry(asked: Question, harmless: Sequence[str], chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_DECLINED)), Turn("user", chance.choice(_AGAIN))))


def _ruled(asked: Question, harmless: Sequence[str], chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, before=(Turn("system", chance.choice(_RULES)),))


_KINDS: Mapping[str, Callable[[Question, Sequence[str], Random], Question]] = {
    "suffix": _suffix,
    "prefix": _prefix,
    "earlier turn": _earlier,
    "later turn": _later,
    "answer begun": _begun,
    "go on": _go_on,
    "retry": _retry,
    "system message": _ruled,
}
