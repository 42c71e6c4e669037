"""`python -m benchmarks.real_heads --model FOLDER --data FOLDER`: the three Refusal Heads on a model that is no toy.

The heads are fitted as a fit does, in bf16, but on fewer prompts. Then each is forced on everything, in fp32: the mean
KL divergence of the steered from the unsteered next tokens along the model's own greedy answers to held-out harmless
prompts, how many of these answers stay as they are, and how many held-out harmful prompts are answered with the
refusal. Nobody knows the right answers: there is no accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.heads import steered
from models.backbone import Backbone
from models.load import load_backbone
from server.cli.fit import REFUSAL
from steering.data.questions import Question
from steering.fitting.items import read_pairs, read_prompts
from steering.fitting.nullspace import HARMLESS_TOKENS, nullspace_head
from steering.fitting.offline import batches, decoded, forced_states, open_rows
from steering.fitting.sweep import refusal_ids, sweep_point
from steering.fitting.training import Forced, Optimisation, Spared, fit_head
from steering.head import RefusalHead

ROWS = 16
HARMLESS_FACTOR = 4  # harmless prompts that a sparing head learns from, for each harmful one, as in a fit
STRENGTHS = (1.0, 1.5)

Answer = tuple[Tensor, Tensor]  # the states `[T, d]` of the places in an answer, fp32, and its tokens `[T]`


def main(
    model: Annotated[Path, typer.Option(help="What `make real-model` writes.")],
    data: Annotated[Path, typer.Option(help="What `python -m steering.fitting.public_data` writes.")],
    harmful: Annotated[int, typer.Option(help="Harmful prompts to fit on; harmless ones are four times as many.")] = 64,
    prompts: Annotated[int, typer.Option(help="Harmless prompts to measure on, and half as many harmful ones.")] = 96,
) -> None:
    """Print what each head does to answers that it should leave alone, and to those that it should not."""
    heads = fitted(load_backbone(model, device="cpu", dtype="bfloat16", max_rows=ROWS), data, harmful)
    backbone = load_backbone(model, device="cpu", dtype="float32", max_rows=ROWS)
    answers = own_answers(backbone, held_out(data, "harmless", prompts))
    asked = held_out(data, "harmful", prompts // 2)
    typer.echo(f"{len(answers)} harmless prompts, {len(asked)} harmful ones")
    for name, head in {"none": RefusalHead(backbone.info.hidden_size), **heads}.items():
        for eps in STRENGTHS[: 1 if name == "none" else None]:
            divergence, kept = steered(backbone, head, eps, answers)
            point = sweep_point(backbone, head, asked, eps, [REFUSAL], lambda _: None)
            rates = f"{kept:.1%} of answers stay, {point.exact:.1%} refuse, {point.begins:.1%} begin like it"
            typer.echo(f"{name}, eps {eps:g}: KL {divergence:.4f}, {rates}")


def fitted(backbone: Backbone, data: Path, harmful: int) -> Mapping[str, RefusalHead]:
    """The heads of all kinds, of `harmful` prompts, a quarter more to stop by, and harmless ones."""
    pairs = [item.toxic for item in read_pairs(data / "pairs.jsonl") if item.toxic is not None]
    benign = [item.safe for item in read_prompts(data / "benign.jsonl") if item.safe is not None]
    train, validation = (forced(backbone, pairs[at]) for at in (slice(harmful), slice(harmful, harmful * 5 // 4)))
    answers = own_answers(backbone, benign[: harmful * HARMLESS_FACTOR])
    harmless = torch.cat([hidden for hidden, _ in answers])
    few = torch.cat([hidden for hidden, _ in answers[:harmful]])

    def logits(hidden: Tensor) -> Tensor:
        return backbone.logits(hidden.to(backbone.info.dtype))

    def trained(spared: Spared | None) -> RefusalHead:
        return fit_head(train, validation, logits, spared=spared, optimisation=Optimisation(epochs=30))[0]

    return {
        "trained": trained(None),
        "nullspace": nullspace_head(train, few, logits),
        "sparing": trained(Spared.of(harmless)),
    }


def forced(backbone: Backbone, questions: Sequence[Question]) -> Forced:
    """The places of the refusal after each prompt."""
    ids = refusal_ids(backbone, REFUSAL)
    return Forced.of(torch.cat([forced_states(backbone, group, ids) for group in batches(questions, ROWS)]), ids)


@torch.no_grad()
def own_answers(backbone: Backbone, questions: Sequence[Question]) -> list[Answer]:
    """What the unguarded model answers to each prompt, greedy, `HARMLESS_TOKENS` at most."""
    found: list[Answer] = []
    for group in batches(questions, ROWS):
        states: list[list[Tensor]] = [[] for _ in group]
        tokens: list[list[int]] = [[] for _ in group]
        with open_rows(backbone, group, HARMLESS_TOKENS) as rows:
            plain = torch.zeros(len(rows))
            for step in decoded(backbone, rows, backbone.prefill(rows), None, plain, HARMLESS_TOKENS):
                for row, hidden, token in zip(step.live, step.hidden.float(), step.tokens, strict=True):
                    states[row].append(hidden)
                    tokens[row].append(token)
        found += [(torch.stack(of), torch.tensor(ids)) for of, ids in zip(states, tokens, strict=True)]
    return found


def held_out(data: Path, kind: str, count: int) -> list[Question]:
    """`count` prompts that no fit sees, of all sets of a kind in turn."""
    sets = [
        [item.questions[0] for item in read_prompts(path, with_test=True)]
        for path in sorted(data.glob(f"{kind}-*.jsonl"))
    ]
    longest = max(map(len, sets))
    return [prompts[at] for at in range(longest) for prompts in sets if at < len(prompts)][:count]


if __name__ == "__main__":
    typer.run(main)
