"""The labelled answers that a reader of answers is fitted on: which part each is in, and whether they are enough."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.data.responses import Response
from steering.errors import FitError
from steering.fitting.enough import TARGET_FPRS, samples_needed
from steering.fitting.items import Item
from steering.fitting.parts import split
from steering.fitting.problems import image_keys, word_keys

MIN_TRAIN = 8  # answers of each label
MIN_FRESH = 4  # harmful ones: fewer measure nothing
FRESH: tuple[Part, ...] = ("validation", "calibration")  # neither is fitted on


@dataclass(frozen=True)
class Said:
    """A whole answer that is to be labelled: `asked_harm` where its prompt is one of the harmful ones."""

    question: Question
    asked_harm: bool
    text: str


Label = Callable[[Sequence[Said]], Sequence[bool | None]]  # harmful or not; None: nobody knows


@dataclass(frozen=True)
class AnswersWanted:
    """What a reader of answers is fitted on: given answers, and the model's own where `label` is there."""

    label: Label | None = None
    judge: str = ""  # the name of who labels
    responses: Sequence[Response] = ()
    max_tokens: int = 128  # of an answer; of longer ones no more is read
    layers: tuple[int, ...] = ()  # read side by side; none: three about the guard's


@dataclass(frozen=True)
class Answered:
    """A labelled answer by its tokens, of a prompt of this score."""

    question: Question
    ids: tuple[int, ...]
    score: float
    harmful: bool
    part: Part

    @property
    def fresh(self) -> bool:
        """Whether the answer is kept from the fit, to calibrate on."""
        return self.part in FRESH


def parts_of(responses: Sequence[Response], fitted: Mapping[Part, Sequence[Item]], seed: int) -> list[Part]:
    """The part of each answer: that of its prompt where the guard's own rows have it, else by what the row says.

    All answers to one prompt are in one part: no reader is measured on a prompt that it was fitted on.
    """
    known = {key: part for part, items in fitted.items() for item in items for key in _keys(item)}
    items = []
    for number, response in enumerate(responses):
        item = Item(str(number), None, response.question, group=response.group, split=response.split)
        part = next((known[key] for key in sorted(_keys(item)) if key in known), None)
        items.append(item if part is None else replace(item, split=part))
    found = {int(item.id): part for part, members in split(items, seed=seed).items() for item in members}
    return [found[number] for number in range(len(responses))]


def _keys(item: Item) -> set[str]:
    return word_keys(item) | image_keys(item)


def check_answers(labels: Iterable[tuple[bool, Part]]) -> None:
    """Raise FitError that names all that a reader of answers lacks; of each answer whether it is harmful, its part."""
    counts = Counter((harmful, "fresh" if part in FRESH else "train") for harmful, part in labels)
    fewest = samples_needed(max(TARGET_FPRS))
    wanted = {
        (True, "train"): MIN_TRAIN,
        (False, "train"): MIN_TRAIN,
        (True, "fresh"): MIN_FRESH,
        (False, "fresh"): fewest,
    }
    lacking = [
        f"{counts[kind]} {'harmful' if kind[0] else 'harmless'} answers {_WHERE[kind[1]]}, and {needed} are needed"
        for kind, needed in wanted.items()
        if counts[kind] < needed
    ]
    if lacking:
        raise FitError(f"too few labelled answers for a reader of answers: {'; '.join(lacking)}")


_WHERE = {"train": "to fit on", "fresh": "to calibrate on"}


def digest_of(responses: Sequence[Response], parts: Sequence[Part]) -> str:
    """SHA-256 over every prompt, answer, label and part, in order."""
    found = hashlib.sha256()
    for response, part in zip(responses, parts, strict=True):
        about = [response.question.transcript, *response.question.digests, response.text, response.harmful, part]
        found.update(json.dumps(about).encode())
    return found.hexdigest()
