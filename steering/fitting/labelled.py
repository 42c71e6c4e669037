"""Where labelled answers come from: the model's own answers to the fit's prompts, and files of answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.backbone import Backbone
from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.data.responses import Response
from steering.fitting.answered import FRESH, Answered, Label, Said, digest_of, parts_of
from steering.fitting.answering import TEMPERATURE, draw_answers, read_drawn
from steering.fitting.collect import Bar
from steering.fitting.dataset import Dataset
from steering.fitting.enough import Parts
from steering.fitting.offline import batches, score_batch
from steering.fitting.stages import Stages, load_json, load_state, save_json, save_state
from steering.guard import Guard

# Prompts that the model answers, at most: a probe wants no more, and 999 harmless ones promise a rate of 0.1 %.
MOST: Mapping[tuple[Sequence[Part], int], int] = {
    (("train",), 1): 500,
    (("train",), 0): 500,
    (FRESH, 1): 500,
    (FRESH, 0): 2000,
}  # by parts and label


@dataclass(frozen=True)
class Sources:
    """What labelled answers are made with. `about`: what all stages depend on, the reader of prompts included."""

    stages: Stages
    about: Mapping[str, Any]
    backbones: Sequence[Backbone]
    guard: Guard
    seed: int
    max_tokens: int  # of an answer; of longer ones no more is read

    def own(self, dataset: Dataset, label: Label, judge: str, bar: Bar) -> tuple[list[Answered], int]:
        """The model's own answers, labelled by the judge of this name; and how many nobody could label."""
        places = _asked(dataset)
        asked = [(dataset.questions[place], _seed_of(dataset.questions[place], self.seed)) for place in places]
        tick = bar("answers", len(asked))
        folder = self.stages.run(
            "answers",
            {**self.about, "places": places, "seed": self.seed, "temperature": TEMPERATURE},
            lambda to: draw_answers(self.backbones, self.guard, asked, self.max_tokens, to, tick),
        )
        drawn = read_drawn(folder)
        tokenizer = self.backbones[0].tokenizer
        said = [
            Said(question, bool(dataset.labels[place]), tokenizer.decode(each.ids, skip_special_tokens=True))
            for place, (question, _), each in zip(places, asked, drawn, strict=True)
        ]
        labelled = self.stages.run(
            "answers-labels",
            {"answers": folder.name, "judge": judge},
            lambda to: save_json(to / "labels.json", list(label(said))),
        )
        labels: list[bool | None] = load_json(labelled / "labels.json")
        found = [
            Answered(question, each.ids, each.score, harmful, dataset.parts[place])
            for place, (question, _), each, harmful in zip(places, asked, drawn, labels, strict=True)
            if harmful is not None
        ]
        return found, labels.count(None)

    def given(self, responses: Sequence[Response], fitted: Parts) -> list[Answered]:
        """Answers that have their labels; their prompts are scored. `fitted`: the rows of the guard's own fit."""
        if not responses:
            return []
        divided = parts_of(responses, fitted, self.seed)
        by_words = {response.question.transcript: response.question for response in responses}
        scored = self.stages.run(
            "answers-prompts",
            {**self.about, "responses": digest_of(responses, divided)},
            lambda to: self._score(list(by_words.values()), to),
        )
        scores = dict(zip(by_words, load_state(scored / "scores.safetensors")["scores"].tolist(), strict=True))
        encode = self.backbones[0].tokenizer.encode
        return [
            Answered(
                response.question,
                tuple(encode(response.text, add_special_tokens=False)[: self.max_tokens]),
                scores[response.question.transcript],
                response.harmful,
                part,
            )
            for response, part in zip(responses, divided, strict=True)
        ]

    def _score(self, questions: Sequence[Question], folder: Path) -> None:
        backbone = self.backbones[0]
        groups = batches(questions, backbone.max_rows)
        scores = [score for group in groups for score in score_batch(backbone, self.guard, group)]
        backbone.read_prompts(None)
        save_state(folder / "scores.safetensors", {"scores": torch.tensor(scores, dtype=torch.float64)})


def _asked(dataset: Dataset) -> list[int]:
    """The prompts that the model answers, evenly over the parts: to fit on as many of each label, then fresh ones."""
    found: list[int] = []
    for (parts, label), most in MOST.items():
        places = [place for part in parts for place in dataset.places(part, label)]
        step = max(1.0, len(places) / most)
        found += [places[int(at * step)] for at in range(min(most, len(places)))]
    return found


def _seed_of(question: Question, seed: int) -> int:
    """The seed of an answer: the same wherever its question stands."""
    return zlib.crc32(f"{seed}/{question.fingerprint}".encode())
