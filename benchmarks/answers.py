"""`python -m benchmarks.answers`: a guard's readers on what the demo model says at temperature 1, unguarded.

Unseen harmless prompts, some of which are answered with harm, and unseen harmful ones. It prints of each kind how many
answers do harm (the demo world's exact judge), which reader catches them, what had been shown by then, and how many
harmless answers are flagged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from models import demo
from models.backbone import Backbone
from models.demo.dialogue import Example, pairs, utility
from models.demo.judge import complies
from models.load import load_backbone
from steering.answers import AnswerReader
from steering.bundle import load_guard
from steering.data.questions import Question
from steering.fitting.answer_figures import shown
from steering.fitting.answer_steps import answer_states
from steering.fitting.answered import Answered
from steering.fitting.answering import draw_answers, read_drawn
from steering.fitting.demo_data import question
from steering.fitting.offline import batches
from steering.guard import Guard
from steering.policy import is_flagged

SEED = 77
MOST_TOKENS = 64
ROWS = 64


@dataclass(frozen=True)
class Seen:
    """An answer: whether it does harm, whether its prompt is flagged, and after how many tokens it is."""

    harm: bool
    flagged: bool
    trip: int | None


def read(backbone: Backbone, guard: Guard, reader: AnswerReader, examples: Sequence[Example]) -> list[Seen]:
    """Have the unguarded model answer, and read what it says."""
    asked: list[tuple[Question, int]] = [(question(example), SEED + n) for n, example in enumerate(examples)]
    with tempfile.TemporaryDirectory() as folder:
        draw_answers([backbone], guard, asked, MOST_TOKENS, Path(folder), lambda _: None)
        drawn = read_drawn(Path(folder))
    spec = guard.manifest.answers
    assert spec is not None
    found = []
    for group in batches(list(zip(asked, drawn, strict=True)), ROWS):
        answers = [
            Answered(about, each.ids, each.score, harmful=False, part="calibration") for (about, _), each in group
        ]
        for answer, states in zip(answers, answer_states(backbone, reader.layers, answers), strict=True):
            watch = reader.watch(answer.score)
            scores = [watch.push(value) for value in reader.read(states)[:, 0].tolist()]
            trip = next((at for at, score in enumerate(scores, 1) if is_flagged(score, spec.threshold)), None)
            harm = complies(backbone.tokenizer.decode(answer.ids, skip_special_tokens=True))
            found.append(Seen(harm, is_flagged(answer.score, guard.manifest.threshold), trip))
    return found


def told(kind: str, seen: Sequence[Seen]) -> str:
    """Two lines about prompts of a kind."""
    harm, rest = [each for each in seen if each.harm], [each for each in seen if not each.harm]
    trips = [each.trip for each in harm if each.trip is not None]
    by_then = shown(trips)
    released = f"; shown by then p50 {by_then['shown_p50']:.0f}, p95 {by_then['shown_p95']:.0f} tokens" if trips else ""
    return (
        f"{kind}: {len(seen)} prompts, {len(harm)} answers do harm: the reader of prompts flags "
        f"{sum(each.flagged for each in harm)}, that of answers {len(trips)}{released}\n"
        f"  of {len(rest)} harmless answers: {sum(each.flagged for each in rest)} and "
        f"{sum(each.trip is not None for each in rest)} flagged"
    )


def main(
    guard: Annotated[Path, typer.Option(help="A bundle of the demo model that reads answers.")] = demo.GUARD,
    prompts: Annotated[int, typer.Option(help="Harmless prompts.")] = 2000,
    harmful: Annotated[int, typer.Option(help="Harmful prompts of each of the four kinds.")] = 60,
) -> None:
    """Print what a guard's readers catch of the demo model's answers at temperature 1."""
    backbone = load_backbone(demo.CHECKPOINT, device="cpu", max_rows=ROWS)
    loaded = load_guard(guard, backbone.info)
    if loaded.answers is None:
        raise typer.BadParameter(f"{guard} does not read answers: autosteer fit --answers")
    kinds = {
        "harmless": utility(prompts, seed=SEED, split="test"),
        "harmful": [pair.toxic for pair in pairs(harmful, seed=SEED + 1, split="test")],
    }
    for kind, examples in kinds.items():
        typer.echo(told(kind, read(backbone, loaded, loaded.answers, list(examples))))


if __name__ == "__main__":
    typer.run(main)
