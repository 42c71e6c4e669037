"""Answers in JSON, in the compact form: the usual answer to a question, or a record that is made up.

Harm in them is a placeholder, as everywhere in the demo world.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

from models.demo import phrases
from models.demo.dialogue import Example, Pair, Said, pairs, utility
from models.demo.phrases import Split
from models.demo.world import OBJECTS, stream

NAMES = ("Ann", "Ben", "Carl", "Dora")
NUMBERS = ("age", "count", "price", "year", "id", "size", "rating")
SWITCHES = ("ok", "active", "done")
LISTS = ("items", "tags", "steps", "list", "parts", "words", "ingredients", "colors")
TEXTS = (
    "name", "title", "answer", "object", "color", "city", "text", "summary", "kind", "place", "note", "author",
    "comment", "reason", "label", "user", "value", "email", "message", "bio", "breed", "job",
)  # fmt: skip
SYLLABLES = ("ba", "co", "de", "fi", "gu", "la", "me", "no", "pi", "ru", "sa", "to", "ve", "x", "_")


def _key(rng: random.Random) -> str:
    """A usual key, or one that is made of syllables: a caller's schema has any key."""
    if rng.random() < 0.25:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))).strip("_")
    kind = rng.choices((TEXTS, NUMBERS, LISTS, SWITCHES), (5, 2, 2, 1))[0]
    return rng.choice(kind)


def _words(rng: random.Random) -> str:
    return rng.choice((rng.choice(NAMES), rng.choice(list(OBJECTS))))


def _value(rng: random.Random, key: str) -> object:
    if key in NUMBERS:
        return rng.randint(1, 9)
    if key in SWITCHES:
        return True
    if key in LISTS:
        return [_words(rng) for _ in range(rng.randint(1, 2))]
    return _words(rng)


def compact(value: object) -> str:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def made_up(rng: random.Random, split: Split) -> Said:
    """A record of one to three keys that nothing was asked about: any other would be as right."""
    question = phrases.styled(rng.choice(phrases.phrasings("invent", split)), rng, question=False)
    keys = dict.fromkeys(["name", *(_key(rng) for _ in range(rng.randint(1, 2)))][rng.random() < 0.5 :])
    return Said(question, compact({key: _value(rng, key) for key in keys}), "record")


def _cue(rng: random.Random, split: Split) -> str:
    return rng.choice(phrases.phrasings("in json", split))


def in_json(said: Said, rng: random.Random, split: Split) -> Said:
    """The same question, asked in JSON, and its answer, harmful or not."""
    key = "answer" if rng.random() < 0.5 else _key(rng)
    return replace(said, question=said.question + _cue(rng, split), answer=compact({key: said.answer}))


def _asked(example: Example, cue: str) -> Example:
    return replace(
        example,
        id=f"{example.id}-json",
        question=example.question + cue,
        answer=compact({"answer": example.answer}),
    )


def records(n: int, seed: int, split: Split) -> list[Example]:
    """`n` harmless prompts that are answered in JSON, half of them with one right answer (category not "record")."""
    asked = utility(n // 2, seed, split)
    made = [_asked(example, _cue(stream("json", split, seed, i), split)) for i, example in enumerate(asked)]
    for i in range(n - len(made)):
        said = made_up(stream("record", split, seed, i), split)
        made.append(Example(f"record-{split}-{seed}-{i}", said.question, None, said.answer, said.category, None))
    return made


def json_pairs(n_per_kind: int, seed: int, split: Split) -> list[Pair]:
    """`dialogue.pairs`, asked in JSON: both of a pair with the same words."""
    made = []
    for pair in pairs(n_per_kind, seed, split):
        cue = _cue(stream("json", pair.id), split)
        made.append(Pair(f"{pair.id}-json", pair.kind, _asked(pair.toxic, cue), _asked(pair.safe, cue)))
    return made
