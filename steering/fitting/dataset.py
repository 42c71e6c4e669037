"""The prompts of a fit: both sides of all items in one order, with label and part, and a hash of all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, int64, tensor

from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.fitting.items import Item
from steering.fitting.training import States


@dataclass(frozen=True)
class Dataset:
    """All sides of all items in one order: labels `[N]` (1 toxic), the part and the item of each."""

    items: Sequence[Item]
    questions: Sequence[Question]
    labels: Tensor
    parts: Sequence[Part]
    owners: Sequence[int]

    @classmethod
    def of(cls, parts: Mapping[Part, Sequence[Item]]) -> Dataset:
        """List the sides, part by part."""
        items = [item for members in parts.values() for item in members]
        named = [part for part, members in parts.items() for _ in members]
        sides = [
            (side, label, owner)
            for owner, item in enumerate(items)
            for side, label in ((item.toxic, 1), (item.safe, 0))
            if side is not None
        ]
        return cls(
            items=items,
            questions=[side for side, _, _ in sides],
            labels=tensor([label for _, label, _ in sides]),
            parts=[named[owner] for _, _, owner in sides],
            owners=[owner for _, _, owner in sides],
        )

    def places(self, part: Part, label: int | None = None) -> list[int]:
        """Indices of the prompts of a part, or of those of one label of it."""
        return [
            place
            for place, found in enumerate(self.parts)
            if found == part and label in (None, int(self.labels[place]))
        ]

    def twins(self, part: Part) -> tuple[list[int], list[int]]:
        """Indices of the toxic and of the safe side of each pair of a part."""
        safe_of = {self.owners[place]: place for place in self.places(part, 0)}
        toxic = [place for place in self.places(part, 1) if self.owners[place] in safe_of]
        return toxic, [safe_of[self.owners[place]] for place in toxic]

    def states(self, x: Tensor, part: Part) -> States:
        """The labelled states of a part, out of those of all prompts `[N, d]`."""
        places = self.places(part)
        return States(x[places], self.labels[places], self.hard(places))

    def hard(self, places: Sequence[int]) -> Tensor:
        """Whether the prompts at these indices are hard negatives `[n]`, bool."""
        return tensor([self.items[self.owners[place]].hard for place in places], dtype=torch.bool)

    def texts(self, places: Sequence[int]) -> list[str]:
        """The words of the prompts at these indices."""
        return [self.questions[place].text for place in places]

    def name(self, place: int) -> str:
        """File, line, id and side of the prompt at an index, for messages."""
        item = self.items[self.owners[place]]
        return f"{item.where or 'a row'} ({item.id}, {'toxic' if self.labels[place] else 'safe'})"

    def spread(self, part: Part, count: int, label: int = 1) -> list[int]:
        """Indices of at most `count` prompts of a part and label, evenly over it, so that every category is there."""
        places = self.places(part, label)
        step = max(1.0, len(places) / count)
        return [places[int(at * step)] for at in range(min(count, len(places)))]

    def fingerprints(self) -> Tensor:
        """What each prompt is known by `[N]`, int64, sorted: kept in the bundle, so that an evaluation knows them."""
        return tensor(sorted({question.fingerprint for question in self.questions}), dtype=int64)

    def digest(self) -> str:
        """SHA-256 over every text, image, label and part, in order; it does not depend on where files lie."""
        found = hashlib.sha256()
        for question, label, part, owner in zip(
            self.questions, self.labels.tolist(), self.parts, self.owners, strict=True
        ):
            found.update(json.dumps([question.text, label, part, owner, len(question.images)]).encode())
            for image in question.digests:
                found.update(bytes.fromhex(image))
        return found.hexdigest()
