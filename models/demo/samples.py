"""Training samples: dialogues of one to five turns about the same pictures, and quizzes.

One picture costs 78 positions, a question and its answer about 30, so several turns share one picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from models.demo import phrases
from models.demo.dialogue import KINDS, Said, any_picture, any_scene, any_sign, crowded, single
from models.demo.records import in_json, made_up
from models.demo.world import (
    COLOURS,
    DANGEROUS,
    OBJECTS,
    POSITIONS,
    TOOLS,
    Picture,
    Scene,
    Sign,
    draw_picture,
    make_scene,
    stream,
)

PLACES = tuple(position.removeprefix("at the ") for position in POSITIONS)
SINGLE, WEAPON, SIGN = (
    0.15,
    0.15,
    0.25,
)  # of the pictures: one object; one tool or dangerous object; a sign; rest: scenes
SHORT, TURNS = 0.25, (3, 6)  # share of the samples that have one turn; fewest and most turns of the others
SCENE_KINDS = {
    "describe": 2.5,
    "count": 3.0,
    "colour": 3.0,
    "where": 3.0,
    "place": 3.0,
    "exists": 2.0,
    "use": 3.0,
    "use on": 3.5,
    "howto": 1.0,
    "repeat": 0.5,
    "talk": 0.4,
}
SIGN_KINDS = {
    "read": 4.0,
    "follow": 5.0,
    "describe": 2.0,
    "count": 0.3,
    "colour": 0.3,
    "where": 0.3,
    "exists": 0.3,
    "howto": 1.2,
    "repeat": 0.6,
    "talk": 0.4,
}
BLIND_KINDS = {
    "howto": 3.0,
    "repeat": 2.5,
    "talk": 1.5,
    "blind": 1.0,
}
CROWDED_KINDS = {"describe": 1.0, "count": 3.0, "colour": 1.5, "where": 1.0, "place": 1.0, "exists": 0.5}
TALK = {**phrases.SMALL_TALK, **phrases.FIRST_TALK}
# Shares of the samples of "widen", in the order of `widened`: at first, and then, so that the old is not forgotten.
WIDENED, SETTLED = (0.16, 0.12, 0.15, 0.27, 0.30), (0.07, 0.11, 0.14, 0.18, 0.50)
ORDINALS = ("first", "second")
WHICH = (
    "what is in the {n} picture",
    "describe the {n} picture",
    "what do you see in the {n} image",
    "tell me about the {n} picture",
    "what does the {n} image show",
)


@dataclass(frozen=True)
class Turn:
    """What the user shows and says, and the answer."""

    images: tuple[Image.Image, ...]
    said: Said
    image_last: bool = False  # the picture stands after the words
    learnt: bool = True  # the answer is to be said; else it stands there alone


@dataclass(frozen=True)
class Conversation:
    """A training sample."""

    system: str | None
    turns: tuple[Turn, ...]

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, in the order of their tokens."""
        return [image for turn in self.turns for image in turn.images]

    def messages(self) -> list[dict[str, Any]]:
        """The sample as chat messages, as chat templates take them."""
        made: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            pictures: list[dict[str, str]] = [{"type": "image"} for _ in turn.images]
            words = [{"type": "text", "text": turn.said.question}]
            made.append({"role": "user", "content": words + pictures if turn.image_last else pictures + words})
            made.append({"role": "assistant", "content": turn.said.answer})
        return made


def _some_picture(rng: random.Random) -> Picture:
    style = rng.random()
    if style < SINGLE:
        return single(rng, list(OBJECTS))
    if style < SINGLE + WEAPON:
        return single(rng, list(TOOLS) + list(DANGEROUS))
    if style < SINGLE + WEAPON + SIGN:
        return any_sign(rng)
    return any_scene(rng)


def _questions(rng: random.Random, picture: Picture | None, count: int) -> list[Said]:
    weights = BLIND_KINDS if picture is None else SIGN_KINDS if isinstance(picture, Sign) else SCENE_KINDS
    kinds = [kind for kind in weights if KINDS[kind](stream(0), "train", picture) or kind in ("use on", "where")]
    made: list[Said] = []
    while len(made) < count:
        kind = rng.choices(kinds, [weights[k] for k in kinds])[0]
        said = KINDS[kind](rng, "train", picture)
        if said is not None:
            made.append(said)
    return made


def _shown(picture: Picture, rng: random.Random, native: float) -> Image.Image:
    """Mostly at the tower's size; else as users' files are: larger or smaller, sometimes not quite square."""
    image = draw_picture(picture, rng)
    if rng.random() < native:
        return image
    side = rng.randint(72, 288)
    stretch = rng.choice((1.0, 1.0, rng.uniform(0.75, 1.33)))
    return image.resize((side, max(64, int(side * stretch))), Image.Resampling.BICUBIC)


def _pair_conversation(rng: random.Random, system: str | None) -> Conversation:
    pictures = [any_picture(rng) for _ in ORDINALS]
    images = [draw_picture(picture, rng) for picture in pictures]
    turns = []
    for i in range(rng.randint(1, 3)):
        which = rng.randrange(2)
        answer = KINDS["describe"](rng, "train", pictures[which])
        assert answer is not None
        prefix = rng.choice(phrases.BANK["describe"][0])
        question = phrases.styled(prefix + rng.choice(WHICH).format(n=ORDINALS[which]), rng)
        turns.append(Turn(tuple(images) if i == 0 else (), Said(question, answer.answer, "describe")))
    return Conversation(system, tuple(turns))


def conversation(rng: random.Random, native: float = 0.9) -> Conversation:
    """A random training sample."""
    system = rng.choice(phrases.SYSTEM_MESSAGES) if rng.random() < 0.15 else None
    style = rng.random()
    if style < 0.05:
        return _pair_conversation(rng, system)
    count = 1 if rng.random() < SHORT else rng.randint(*TURNS)
    if style < 0.17:
        return Conversation(system, tuple(Turn((), said) for said in _questions(rng, None, min(count, 3))))
    picture = _some_picture(rng)
    image = _shown(picture, rng, native)
    turns = [Turn((), said) for said in _questions(rng, picture, count)]
    turns[0] = Turn((image,), turns[0].said, image_last=rng.random() < 0.15)
    if rng.random() < 0.08:  # the picture comes in a later turn
        before = [Turn((), said) for said in _questions(rng, None, 1)]
        if before[0].said.category != "blind":
            turns = before + turns
    return Conversation(system, tuple(turns))


def _record_conversation(rng: random.Random, system: str | None) -> Conversation:
    """A question that is asked in JSON, about a picture or not, or a record that is made up."""
    if rng.random() < 0.5:
        return Conversation(system, (Turn((), made_up(rng, "train")),))
    picture = _some_picture(rng) if rng.random() < 0.4 else None
    images = () if picture is None else (draw_picture(picture, rng),)
    return Conversation(system, (Turn(images, in_json(_questions(rng, picture, 1)[0], rng, "train")),))


def _talk_conversation(rng: random.Random, system: str | None) -> Conversation:
    """What strangers say first, with the marks of questions and of statements, mostly in few words."""
    turns = []
    for name in rng.choices(list(TALK), [len(cores) for cores, _ in TALK.values()], k=rng.choice((1, 1, 2))):
        words = min(rng.choices(phrases.phrasings(name, "train"), k=2), key=len)
        question = phrases.styled(words, rng, question=rng.random() < 0.4)
        turns.append(Turn((), Said(question, TALK[name][1], "talk")))
    return Conversation(system, tuple(turns))


def _crowded_conversation(rng: random.Random, system: str | None) -> Conversation:
    """A picture of several groups: described, and then asked about."""
    picture = crowded(rng)
    kinds = rng.choices(list(CROWDED_KINDS), list(CROWDED_KINDS.values()), k=rng.randint(1, 4))
    said = [KINDS[kind](rng, "train", picture) for kind in ("describe", *kinds)]
    turns = [Turn((), each) for each in said if each is not None]
    rng.shuffle(turns)
    turns[0] = replace(turns[0], images=(_shown(picture, rng, native=0.9),), image_last=rng.random() < 0.15)
    return Conversation(system, tuple(turns))


def widened(rng: random.Random, shares: Sequence[float] = SETTLED) -> Conversation:
    """A sample of "widen": small talk, JSON, two pictures, several groups, and samples as before."""
    makers = (_talk_conversation, _record_conversation, _pair_conversation, _crowded_conversation, None)
    made = rng.choices(makers, shares)[0]
    if made is None:
        return conversation(rng)
    return made(rng, rng.choice(phrases.SYSTEM_MESSAGES) if rng.random() < 0.15 else None)


@dataclass(frozen=True)
class Quiz:
    """An exercise, no question of users: many short cues about one picture, so that most tokens teach to look up."""

    picture: Scene
    asked: tuple[tuple[str, str], ...]  # cue, answer


def quiz(rng: random.Random, questions: int = 20) -> Quiz:
    """What is at a place, and where, in which colour and how many of a thing: in a crowded scene, in random order."""
    names = rng.sample(list(OBJECTS), rng.randint(1, 5))
    groups = [(name, rng.choice(list(COLOURS)), 1) for name in names]
    if rng.random() < 0.4:
        groups = [(names[0], groups[0][1], rng.randint(2, 4)), *groups[1:3]]
    scene = make_scene(rng, groups)
    return Quiz(scene, tuple(_cue(rng, scene) for _ in range(questions)))


def _cue(rng: random.Random, scene: Scene) -> tuple[str, str]:
    there = rng.random() < 0.7
    if rng.random() < 0.5:
        cells = [cell for group in scene.groups for cell in group.cells] if there else range(len(POSITIONS))
        cell = rng.choice(cells)
        found = scene.at(cell)
        return f" {PLACES[cell]}", f" {found.colour} {found.name};" if found else " nothing;"
    name = rng.choice(scene.groups).name if there else rng.choice((*OBJECTS, *phrases.ABSENT))
    cue = f" {phrases.plural(name) if rng.random() < 0.4 else name}"
    group = scene.group(name)
    if group is None:
        return cue, " no;"
    place = f" {PLACES[group.cells[0]]}" if group.count == 1 else ""
    return cue, f" {phrases.NUMBERS[group.count]} {group.colour}{place};"


def texts(seed: int, count: int) -> list[str]:
    """Questions, answers and headers of `count` conversations: what the tokenizer is trained on."""
    rng = stream("tokenizer", seed)
    made: list[str] = ["system\n", "user\n", "assistant\n"] * 500 + [*phrases.SYSTEM_MESSAGES]
    for _ in range(count):
        picture = rng.choice((None, _some_picture(rng)))
        for said in _questions(rng, picture, 4):
            made += [said.question, said.answer]
    return made
