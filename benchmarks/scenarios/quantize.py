"""Weights in 8 bits against weights as they are: speed, and what changes in answers and in the guard's scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, serving_dtype
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import autosteer
from benchmarks.workloads import about_images, picture, words
from models.backbone import Backbone
from models.demo import CHECKPOINT, GUARD
from models.demo.dialogue import pairs, utility
from models.load import load_backbone
from models.prompt import Prompt
from steering.bundle import load_guard
from steering.data.questions import Question
from steering.fitting.offline import prompt_of
from steering.guard import Guard

CLIENTS = (1, 16)
PLAIN, INT8 = "as they are", "int8"
PROMPTS = 128  # of each model, for the effect
ROWS = 16
TOKENS = 32


def run(bench: Bench) -> Report:
    """Speed of the small model through HTTP; effect on the small model, which is random, and the demo, which is not."""
    title = "weights as they are, and in int8"
    report = Report("quantize", title, ("clients", "weights", "tokens/s", "first token p50", "between tokens p50"))
    loads = _loads(bench)
    for clients, found in loads.items():
        report.rows += [_row(clients, label, some) for label, some in found.items()]
        ratio = Estimate.of_ratios(*([load.tokens_per_second for load in found[label]] for label in (INT8, PLAIN)))
        report.goals.append(Goal(f"{clients} clients: tokens/s, {INT8} / {PLAIN}", ratio))
    report.notes.append(bench.generator(load for found in loads.values() for some in found.values() for load in some))
    checkpoint = bench.checkpoint(SMALL)
    for name, model, guard, questions in (
        ("small, random", checkpoint.model, checkpoint.guard, _small()),
        ("demo", CHECKPOINT, GUARD, _demo()),
    ):
        effect = Effect.measure(model, guard, questions)
        report.notes.append(f"What int8 changes, {name}: {effect}")
        report.data[name] = vars(effect)
    return report


def _loads(bench: Bench) -> dict[int, dict[str, list[Load]]]:
    """Loads of two servers in turn."""
    loads: dict[int, dict[str, list[Load]]] = {clients: {PLAIN: [], INT8: []} for clients in CLIENTS}
    with ExitStack() as stack:
        model = bench.checkpoint(SMALL)
        servers = {
            PLAIN: stack.enter_context(autosteer(model, name=PLAIN)),
            INT8: stack.enter_context(autosteer(model, "--quantize", "int8", name=INT8)),
        }
        for number in bench.each(range(-1, 2 * bench.effort.rounds), "quantize"):
            for clients in CLIENTS:
                bodies = about_images(max(4, 2 * clients), max_tokens=bench.effort.answer, seed=number)
                for label, server in servers.items():
                    load = server.load(bodies, clients=clients, count=len(bodies))
                    if number >= 0:  # the first is the warm-up
                        loads[clients][label].append(load)
    return loads


def _row(clients: int, label: str, loads: Sequence[Load]) -> tuple[str, ...]:
    speed = Estimate.of([load.tokens_per_second for load in loads])
    latencies = (
        ms(Estimate.of([getattr(load, measure) for load in loads]).value)
        for measure in ("first_token_p50", "between_tokens_p50")
    )
    return str(clients), label, speed.show(0), *latencies


# effect ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What changes, over the plain model's own greedy answers and the scores of the prompts."""

    prompts: int
    places: int  # of a token in an answer
    agreement: float  # share of the places in which both find the same next token the likeliest
    divergence: float  # mean Kullback-Leibler divergence of the next token's distribution from the plain one, nats
    score_mean: float  # absolute change of the guard's score
    score_most: float
    verdicts: int  # prompts that come to lie on the other side of the guard's threshold

    def __str__(self) -> str:
        return (
            f"the likeliest next token is the same in {self.agreement:.1%} of {self.places} places of the answers, "
            f"divergence {self.divergence:.4f} nats; the guard's score moves by {self.score_mean:.4f} on average and "
            f"{self.score_most:.4f} at most, {self.verdicts} of {self.prompts} verdicts change."
        )

    @classmethod
    @torch.inference_mode()
    def measure(cls, model: Path, folder: Path, questions: Sequence[Question]) -> Effect:
        """Of a model's folder, with a guard's, answering questions."""
        plain, int8 = (
            load_backbone(model, device="cpu", dtype=serving_dtype(), max_rows=ROWS, int8=int8)
            for int8 in (False, True)
        )
        guard = load_guard(folder, plain.info)
        prompts = [prompt_of(plain, question) for question in questions]
        same: list[Tensor] = []
        divergences: list[Tensor] = []
        scores: dict[Backbone, list[Tensor]] = {plain: [], int8: []}
        for at in range(0, len(prompts), ROWS):
            answers = [_Answers(backbone, guard, prompts[at : at + ROWS]) for backbone in (plain, int8)]
            for each, found in zip(answers, scores.values(), strict=True):
                found.append(each.scores)
            for _ in range(TOKENS):
                expected, other = (each.logits.float().log_softmax(-1) for each in answers)
                chosen = expected.argmax(-1)
                same.append(chosen == other.argmax(-1))
                divergences.append((expected.exp() * (expected - other)).sum(-1))
                for each in answers:
                    each.go_on(chosen)
            for each in answers:
                each.end()
        before, after = (torch.cat(found) for found in scores.values())
        moved = (before - after).abs()
        threshold = guard.manifest.threshold
        return cls(
            prompts=len(prompts),
            places=len(prompts) * TOKENS,
            agreement=float(torch.cat(same).float().mean()),
            divergence=float(torch.cat(divergences).mean()),
            score_mean=float(moved.mean()),
            score_most=float(moved.max()),
            verdicts=int(((before >= threshold) != (after >= threshold)).sum()),
        )


class _Answers:
    """Answers to some prompts in step, and what the guard says of these."""

    def __init__(self, backbone: Backbone, guard: Guard, prompts: Sequence[Prompt]) -> None:
        self._backbone = backbone
        backbone.read_prompts(guard)
        self._rows = [backbone.open_row(prompt, TOKENS) for prompt in prompts]
        hidden = backbone.prefill(self._rows)
        self.scores = torch.tensor(
            [
                guard.score(backbone.notes(row, len(prompt.ids)), backbone.inputs.layout(prompt.ids))
                for row, prompt in zip(self._rows, prompts, strict=True)
            ]
        )
        self.logits = backbone.logits(hidden)

    def go_on(self, tokens: Tensor) -> None:
        """Say these tokens."""
        self.logits = self._backbone.logits(self._backbone.decode(self._rows, tokens))

    def end(self) -> None:
        """Free the rows."""
        for row in self._rows:
            self._backbone.close_row(row)


def _small() -> list[Question]:
    chance = random.Random(0)
    return [Question(words(chance, 12), [picture(place, (224, 224))]) for place in range(PROMPTS)]


def _demo() -> list[Question]:
    """Half of them harmless questions, a quarter harmful ones and a quarter their harmless twins."""
    twins = pairs(PROMPTS // 16, seed=0, split="test")
    examples = [*utility(PROMPTS // 2, seed=0, split="test"), *(e for pair in twins for e in (pair.toxic, pair.safe))]
    return [Question(each.question, [each.image] if each.image else []) for each in examples]
