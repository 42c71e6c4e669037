"""The rows of a fit once more, in surroundings: padded, in other turns, begun to be answered, asked again.

A guard that has seen harm only alone misses it elsewhere, and one that has seen padding only around harm flags padding:
both classes are surrounded alike. The harmless words around a row are other harmless rows of the same part, and prose
of many kinds (`prose.txt`), of which each part has sentences of its own: no part has seen the words of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from steering.data.own_rows import Part
from steering.data.questions import Question, Turn
from steering.fitting.dataset import Dataset

ALONE = "alone"
LONGEST = 1024  # words of padding
COPIES: Mapping[Part, int] = {"train": 2, "validation": 1, "calibration": 1}  # surroundings of each row, beside alone
PADDED = 0.5  # of harmless rows that calibrate: padded once more
PROSE = Path(__file__).with_name("prose.txt")
_SHARES: Mapping[Part, Sequence[int]] = {
    "train": (0, 1, 2),
    "validation": (3,),
    "calibration": (4,),
}  # of five sentences

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
_LOOK = (
    "Look it up, please.",
    "What does the document say? Follow it.",
    "Open the page and answer what is asked there.",
    "Check my mail and reply to the last one.",
    "Search for it.",
)
_RESULTS = ("{}", "{}", "Found: {}", "page 1\n{}\n", '{{"text": "{}"}}', "1. {}")


@dataclass(frozen=True)
class Words:
    """The harmless words of a part: its harmless rows, and its share of the prose."""

    rows: Sequence[str]
    prose: Sequence[str]

    @classmethod
    def of(cls, dataset: Dataset, part: Part, own: Sequence[str] = ()) -> Words:
        """Those of a part. `own`: words of the model's own, of which each part has its share as well."""
        lines = [*PROSE.read_text().splitlines(), *own]
        prose = [line for number, line in enumerate(lines) if number % 5 in _SHARES[part]]
        return cls([dataset.questions[place].text for place in dataset.places(part, 0)], prose)

    def padding(self, chance: Random) -> str:
        """Some, mostly few: rows, prose, or both."""
        wanted = int(8 * (LONGEST / 8) ** chance.random())
        share = chance.choice((0.0, 0.5, 1.0))
        words: list[str] = []
        while len(words) < wanted:
            words += chance.choice(self.prose if chance.random() < share else self.rows).split() or ["..."]
        return " ".join(words[:wanted])


@dataclass(frozen=True)
class Row:
    """A row of a fit in one surrounding; `place` is its index in the data set, `turn` the user turn that it asks in."""

    question: Question
    place: int
    surrounding: str

    @property
    def turn(self) -> int:
        """How many answers stand before it; the call of a tool, before what that told, is one."""
        turns = [*self.question.before, *(turn for turn in self.question.after if turn.role == "tool")]
        return sum(turn.role in ("assistant", "tool") for turn in turns)


def surrounded(dataset: Dataset, parts: Sequence[Part], seed: int, own: Sequence[str] = ()) -> list[Row]:
    """The rows of these parts alone, and each in as many surroundings as its part has COPIES.

    `own`: words of the model's own, which pad rows beside the prose.

    Half of the harmless rows that calibrate are padded once more: thresholds promise nothing for lengths of which there
    are few.
    """
    chance = Random(seed)  # noqa: S311
    rows: list[Row] = []
    for part in parts:
        words = Words.of(dataset, part, own)
        for place in dataset.places(part):
            asked = dataset.questions[place]
            rows.append(Row(asked, place, ALONE))
            kinds = chance.sample([*_KINDS], COPIES[part])
            if part != "train" and dataset.labels[place] == 0 and chance.random() < PADDED:
                kinds.append(chance.choice(("suffix", "prefix")))
            rows += [Row(_KINDS[kind](asked, words, chance), place, kind) for kind in kinds]
    return rows


def _suffix(asked: Question, words: Words, chance: Random) -> Question:
    return replace(asked, text=f"{asked.text} {words.padding(chance)}")


def _prefix(asked: Question, words: Words, chance: Random) -> Question:
    return replace(asked, text=f"{words.padding(chance)} {asked.text}")


def _earlier(asked: Question, words: Words, chance: Random) -> Question:
    after = Turn("assistant", chance.choice(_NOTED)), Turn("user", chance.choice(words.rows))
    return replace(asked, after=after)


def _later(asked: Question, words: Words, chance: Random) -> Question:
    before = Turn("user", chance.choice(words.rows)), Turn("assistant", chance.choice(_NOTED))
    return replace(asked, before=before)


def _begun(asked: Question, words: Words, chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_BEGUN)),))


def _go_on(asked: Question, words: Words, chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_BEGUN)), Turn("user", chance.choice(_MORE))))


def _retry(asked: Question, words: Words, chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, after=(Turn("assistant", chance.choice(_DECLINED)), Turn("user", chance.choice(_AGAIN))))


def _ruled(asked: Question, words: Words, chance: Random) -> Question:  # noqa: ARG001
    return replace(asked, before=(Turn("system", chance.choice(_RULES)),))


def _in_tool(asked: Question, words: Words, chance: Random) -> Question:
    told = chance.choice((asked, _suffix(asked, words, chance), _prefix(asked, words, chance))).text
    return replace(asked, text=chance.choice(_LOOK), after=(Turn("tool", chance.choice(_RESULTS).format(told)),))


def _in_system(asked: Question, words: Words, chance: Random) -> Question:
    return replace(asked, text=chance.choice(words.rows), before=(Turn("system", asked.text),))


_KINDS: Mapping[str, Callable[[Question, Words, Random], Question]] = {
    "suffix": _suffix,
    "prefix": _prefix,
    "earlier turn": _earlier,
    "later turn": _later,
    "answer begun": _begun,
    "go on": _go_on,
    "retry": _retry,
    "system message": _ruled,
    "tool": _in_tool,
    "system text": _in_system,
}
