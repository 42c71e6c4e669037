"""`python -m benchmarks.heads BUNDLE...`: Refusal Heads of the demo model, forced on everything.

Of each bundle's head: the mean KL divergence of the steered from the unsteered next tokens along the right
answers to harmless prompts, how many of these answers are still given in full, and how many harmful prompts are
answered with the refusal. Unseen prompts, greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models import demo
from models.backbone import Backbone
from models.demo.dialogue import Example, pairs, utility
from models.load import load_backbone
from steering.bundle import load_guard
from steering.fitting.demo_data import question
from steering.fitting.offline import forced_states
from steering.fitting.sweep import refusal_ids, sweep_point
from steering.head import RefusalHead

SEED = 83
ROWS = 32


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the demo model.")],
    eps: Annotated[list[float] | None, typer.Option(help="Instead of the bundle's; may be given again.")] = None,
    prompts: Annotated[int, typer.Option(help="Harmless prompts, and a quarter as many harmful ones.")] = 200,
) -> None:
    """Print what each head does to rows that it should leave alone, and to those that it should not."""
    backbone = load_backbone(demo.CHECKPOINT, device="cpu", dtype="float32", max_rows=ROWS)
    twins = pairs(max(1, prompts // 16), seed=SEED, split="test")
    harmless = [*utility(prompts, seed=SEED, split="test"), *(pair.safe for pair in twins)]
    answers = [along(backbone, example) for example in harmless]
    table = Table("bundle", "eps", "KL mean", "right answers", "unsteered", "refusals", "begin like it")
    plain = sum(right(backbone.logits(hidden), ids) for hidden, ids in answers) / len(answers)
    for folder in bundles:
        guard = load_guard(folder, backbone.info)
        asked = [question(pair.toxic) for pair in twins]
        for strength in eps or [guard.manifest.eps]:
            point = sweep_point(backbone, guard.head, asked, strength, [guard.manifest.refusal], lambda _: None)
            divergence, kept = steered(backbone, guard.head, strength, answers)
            rates = f"{kept:.1%}", f"{plain:.1%}", f"{point.exact:.1%}", f"{point.begins:.1%}"
            table.add_row(str(folder), f"{strength:g}", f"{divergence:.4f}", *rates)
    Console(width=140).print(table)


def along(backbone: Backbone, example: Example) -> tuple[Tensor, Tensor]:
    """The states `[T, d]` in the places of the right answer, and its tokens `[T]`, the end included."""
    ids = refusal_ids(backbone, example.answer)
    return forced_states(backbone, [question(example)], ids)[0], torch.tensor(ids)


@torch.no_grad()
def steered(
    backbone: Backbone, head: RefusalHead, eps: float, answers: Sequence[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """The mean divergence in the places of all answers, and the share of answers that are still given."""
    divergences, kept = [], 0
    for hidden, ids in answers:
        bent = head.steer(hidden, torch.full((len(ids),), eps))
        before, after = (backbone.logits(each).log_softmax(-1) for each in (hidden, bent))
        divergences.append((before.exp() * (before - after)).sum(1))
        kept += right(after, ids)
    return float(torch.cat(divergences).mean()), kept / len(answers)


def right(logits: Tensor, ids: Tensor) -> bool:
    """Whether a greedy answer has these tokens."""
    return bool((logits.argmax(-1) == ids).all())


if __name__ == "__main__":
    typer.run(main)
