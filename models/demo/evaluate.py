"""Measures the unguarded demo model with the stock `generate` of transformers.

    python -m models.demo.evaluate [--model DIR] [--n 1000] [--pairs 300] [--split test] [--seed 1] [--json FILE]

Greedy; prints exact-match accuracy per question kind, the attack success rate per kind of harm, how the harmless twins
are answered, and the accuracy where a system message, an earlier turn, another picture or a resized one is around the
question.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlavaOnevisionForConditionalGeneration

from models.demo import CHECKPOINT
from models.demo.around import plain as plain_words
from models.demo.dialogue import Example, Split, pairs, utility
from models.demo.judge import complied, correct, refused
from models.demo.phrases import SMALL_TALK, SYSTEM_MESSAGES
from models.demo.processor import DemoProcessor, load_processor
from models.demo.world import stream

console = Console()


@dataclass(frozen=True)
class Line:
    """One line of the table: rates over `n` examples."""

    group: str  # "utility", "harmful", "twin" or "around"
    name: str
    n: int
    exact: float
    complied: float
    refused: float


@dataclass(frozen=True)
class Request:
    """Chat messages and the pictures that their image parts stand for."""

    messages: list[dict[str, Any]]
    images: list[Image.Image]


def plain(example: Example) -> Request:
    """The example as one user message, its picture first."""
    images = [example.image] if example.image is not None else []
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": example.question}]
    return Request([{"role": "user", "content": content}], images)


def after_system(example: Example) -> Request:
    """The example after a system message."""
    asked = plain(example)
    return replace(asked, messages=[{"role": "system", "content": SYSTEM_MESSAGES[0]}, *asked.messages])


def second_turn(example: Example) -> Request:
    """The example after a greeting and its answer."""
    asked = plain(example)
    answer = SMALL_TALK["hello"][1]
    greeting = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": answer}]
    return replace(asked, messages=[*greeting, *asked.messages])


def resized(example: Example) -> Request:
    """The example with its picture as a file of another size."""
    asked = plain(example)
    return replace(asked, images=[image.resize((224, 224), Image.Resampling.BICUBIC) for image in asked.images])


def among_words(words: int, example: Example, *, before: bool) -> Request:
    """The example with so many plain words before or after it, but before it where a sentence is to be repeated."""
    said = plain_words(stream("plain", example.id), "test", words)
    first = before or example.category == "repeat"
    question = f"{said} {example.question}" if first else f"{example.question} {said}"
    return plain(replace(example, question=question))


FRAMES: dict[str, Callable[[Example], Request]] = {
    "after a system message": after_system,
    "in a second turn": second_turn,
    "picture of 224 x 224": resized,
    **{f"{words} plain words before it": partial(among_words, words, before=True) for words in (32, 128)},
    **{f"{words} plain words after it": partial(among_words, words, before=False) for words in (32, 128)},
}


def two_pictures(examples: list[Example]) -> tuple[list[Request], list[Example]]:
    """Descriptions of one of two pictures in the same message, and the examples that hold the right answers."""
    described = [e for e in examples if e.category == "describe"]
    requests, wanted = [], []
    for i, (one, two) in enumerate(pairwise(described)):
        assert one.image is not None
        assert two.image is not None
        wanted.append((one, two)[i % 2])
        words = {"type": "text", "text": f"Describe the {('first', 'second')[i % 2]} picture"}
        content = [{"type": "image"}, {"type": "image"}, words]
        requests.append(Request([{"role": "user", "content": content}], [one.image, two.image]))
    return requests, wanted


def answers(
    model: LlavaOnevisionForConditionalGeneration,
    processor: DemoProcessor,
    examples: list[Example],
    frame: Callable[[Example], Request] = plain,
    batch: int = 48,
) -> list[str]:
    """The greedy answer to each example, in order."""
    order = sorted(range(len(examples)), key=lambda i: (examples[i].image is None, len(examples[i].question)))
    said = [""] * len(examples)
    for start in track(range(0, len(order), batch), description="answering", console=console, transient=True):
        chosen = order[start : start + batch]
        for i, text in zip(chosen, generate(model, processor, [frame(examples[i]) for i in chosen]), strict=True):
            said[i] = text
    return said


def generate(
    model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, requests: list[Request]
) -> list[str]:
    """The greedy answers to a batch of requests. Either all of them or none have several pictures."""
    prompts = [
        processor.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        for request in requests
    ]
    nested = [request.images for request in requests]
    images = nested if any(len(each) > 1 for each in nested) else [image for each in nested for image in each]
    inputs = processor(text=prompts, images=images or None, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    made: list[str] = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return made


def line(group: str, name: str, examples: list[Example], outputs: list[str]) -> Line:
    """Rates of one group of examples."""
    n = len(examples)
    both = list(zip(examples, outputs, strict=True))
    return Line(
        group,
        name,
        n,
        exact=sum(correct(e, o) for e, o in both) / n,
        complied=sum(complied(e, o) for e, o in both) / n,
        refused=sum(refused(o) for o in outputs) / n,
    )


def evaluate(
    model: LlavaOnevisionForConditionalGeneration,
    processor: DemoProcessor,
    n: int,
    per_kind: int,
    split: Split,
    seed: int,
) -> tuple[list[Line], list[tuple[Example, str]]]:
    """All lines of the table, and the examples that were answered wrongly with what was said."""
    useful, twins = utility(n, seed, split), pairs(per_kind, seed, split)
    examples = useful + [p.toxic for p in twins] + [p.safe for p in twins]
    groups = [("utility", "")] * len(useful) + [("harmful", p.kind) for p in twins] + [("twin", p.kind) for p in twins]
    buckets: dict[tuple[str, str], list[tuple[Example, str]]] = defaultdict(list)
    wrong = []
    for (group, kind), example, output in zip(groups, examples, answers(model, processor, examples), strict=True):
        buckets[group, kind or example.category].append((example, output))
        if group == "utility":
            buckets[group, "all"].append((example, output))
        if not correct(example, output):
            wrong.append((example, output))
    lines = [line(group, name, [e for e, _ in rows], [o for _, o in rows]) for (group, name), rows in buckets.items()]
    some = useful[: max(1, n // 4)]
    lines += [line("around", name, some, answers(model, processor, some, frame)) for name, frame in FRAMES.items()]
    requests, wanted = two_pictures(useful)
    if requests:
        lines.append(line("around", "one of two pictures", wanted, generate(model, processor, requests)))
    return lines, wrong


def show(lines: list[Line], title: str) -> None:
    """Prints the table."""
    table = Table("", "kind", "n", "exact %", "complied %", "refused %", title=title)
    for entry in lines:
        rates = (f"{100 * rate:.1f}" for rate in (entry.exact, entry.complied, entry.refused))
        table.add_row(entry.group, entry.name, str(entry.n), *rates)
    console.print(table)


def main(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = CHECKPOINT,
    n: Annotated[int, typer.Option(help="Utility examples.")] = 1000,
    pairs_: Annotated[int, typer.Option("--pairs", help="Twin pairs per kind of harm.")] = 300,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 1,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    wrong: Annotated[int, typer.Option(help="Show this many wrong answers.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Prints how the unguarded model answers."""
    if split not in ("train", "val", "test"):
        raise typer.BadParameter(f"{split!r} is none of train, val, test", param_hint="--split")
    torch.set_num_threads(threads)
    started = time.monotonic()
    backbone = LlavaOnevisionForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    lines, missed = evaluate(backbone, load_processor(model), n, pairs_, split, seed)  # type: ignore[arg-type]
    show(lines, f"unguarded, {split} split, seed {seed}, {time.monotonic() - started:.0f} s")
    for example, output in missed[:wrong]:
        console.print(
            f"[{example.harm or example.category}] {example.question}",
            f"  expected {example.answer}\n  said     {output}",
            sep="\n",
            markup=False,
        )
    if json_ is not None:
        json_.write_text(json.dumps([asdict(entry) for entry in lines], indent=2))


if __name__ == "__main__":
    typer.run(main)
