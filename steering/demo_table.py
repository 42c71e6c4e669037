"""`python -m steering.demo_table`: the bundled model with and without its guard, on unseen scenes and phrasings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models.backbone import Backbone
from models.demo import CHECKPOINT, GUARD
from models.demo.dialogue import HARM_KINDS, Example, pairs, utility
from models.demo.judge import complied, correct, refused
from models.load import load_backbone
from steering.bundle import load_guard
from steering.demo_data import question
from steering.guard import Guard
from steering.offline import Answered, answer, batches
from steering.policy import Mode

Judge = Callable[[Example, str], bool]

MAX_TOKENS = 64
BATCH = 16


@dataclass(frozen=True)
class Figure:
    """One row: shares of `n` examples in the two modes."""

    what: str
    n: int
    unguarded: float
    guarded: float


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def run(
    backbone: Backbone, guard: Guard, examples: Sequence[Example], mode: Mode, progress: Progress
) -> list[Answered]:
    """Greedy answers of all examples in one mode."""
    questions = [question(example) for example in examples]
    policy = guard.manifest.policy(mode=mode)
    groups = progress.track(list(batches(questions, BATCH)), description=f"{mode.value}: {len(examples)}")
    return [answered for group in groups for answered in answer(backbone, group, guard, policy, MAX_TOKENS)]


def demo_table(
    backbone: Backbone, guard: Guard, *, harmful: int, harmless: int, seed: int, progress: Progress
) -> list[Figure]:
    """Accuracy, attack success rate and refusals of twins, unguarded (`off`) and guarded (`steer`)."""
    twins = pairs(harmful, seed=seed, split="test")
    asked = utility(harmless, seed=seed, split="test")
    everything = [*asked, *(pair.toxic for pair in twins), *(pair.safe for pair in twins)]
    texts = {
        mode: {e.id: a.text for e, a in zip(everything, run(backbone, guard, everything, mode, progress), strict=True)}
        for mode in (Mode.OFF, Mode.STEER)
    }
    off, steer = texts[Mode.OFF], texts[Mode.STEER]

    def figure(what: str, examples: Sequence[Example], judge: Judge) -> Figure:
        shares = [_share([judge(e, answers[e.id]) for e in examples]) for answers in (off, steer)]
        return Figure(what, len(examples), *shares)

    figures = [figure("accuracy, utility", asked, correct)]
    for kind in HARM_KINDS:
        toxic, safe = [p.toxic for p in twins if p.kind == kind], [p.safe for p in twins if p.kind == kind]
        figures += [
            figure(f"ASR, {kind}", toxic, complied),
            figure(f"refused, {kind}", toxic, lambda _, text: refused(text)),
            figure(f"twins refused, {kind}", safe, lambda _, text: refused(text)),
            figure(f"twins correct, {kind}", safe, correct),
        ]
    safe = [pair.safe for pair in twins]
    return [*figures, figure("twins refused, all", safe, lambda _, text: refused(text))]


def main(
    model: Annotated[Path, typer.Option(help="Folder of the demo model.")] = CHECKPOINT,
    guard: Annotated[Path, typer.Option(help="Folder of its guard.")] = GUARD,
    harmful: Annotated[int, typer.Option(help="Twins of each kind of harm.")] = 300,
    harmless: Annotated[int, typer.Option(help="Utility examples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the test examples.")] = 2026,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON to this file.")] = None,
) -> None:
    """Print the demo model's figures."""
    backbone = load_backbone(model)
    with Progress() as progress:
        figures = demo_table(
            backbone, load_guard(guard, backbone.info), harmful=harmful, harmless=harmless, seed=seed, progress=progress
        )
    table = Table("what", "n", "unguarded", "guarded (steer)")
    for row in figures:
        table.add_row(row.what, str(row.n), f"{row.unguarded:.2%}", f"{row.guarded:.2%}")
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in figures], indent=2))


if __name__ == "__main__":
    typer.run(main)
