"""Long prompts beside running rows, and questions about an image that was asked about before."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from transformers import AutoTokenizer

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.client import Answer, Connection
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import closed_load, run, undisturbed
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import Endpoint, autosteer
from benchmarks.workloads import chat, data_url, long_prompts, same_image_questions, text_only

LONG = 4000
RUNNING = 8
GAP_MS = 300
SETTLE_SECONDS = 0.5
QUESTIONS = 10
PICTURES = ((336, 336, "PNG"), (512, 384, "JPEG"), (640, 480, "PNG"), (768, 768, "JPEG"), (1024, 768, "JPEG"))

Window = tuple[float, float]


@dataclass
class _Watch:
    """Answers that run on and on, the windows of time in which they are watched, and the prompts' first tokens."""

    answers: list[Answer] = field(default_factory=list)
    alone: list[Window] = field(default_factory=list)
    beside: list[Window] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    def _pairs(self) -> Iterator[Window]:
        return (pair for answer in self.answers for pair in itertools.pairwise(answer.marks))

    def within(self, window: Window) -> list[float]:
        """Gaps between tokens that both came in the window."""
        return [after - before for before, after in self._pairs() if window[0] <= before and after <= window[1]]

    def touching(self, window: Window) -> list[float]:
        """Also those that began before it or ended after it."""
        return [after - before for before, after in self._pairs() if window[0] < after and before < window[1]]


def long_prompt(bench: Bench) -> Report:
    """The p99 between tokens of running rows while a long prompt is computed, against theirs without it."""
    report = Report(
        "long-prompt",
        f"{RUNNING} rows running, a prompt of {LONG:,} tokens beside them, small model",
        ("rows", "between tokens p50", "p99", "longest"),
    )
    checkpoint = bench.checkpoint(SMALL)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.model)

    def prompts(server: Endpoint, count: int, seed: int) -> list[bytes]:
        def tokens(text: str) -> int:
            return len(tokenizer.encode(text))

        return server.requests(long_prompts(count, tokens, LONG, max_tokens=8, seed=seed))

    with autosteer(checkpoint) as server:
        closed_load(server.url, prompts(server, 1, seed=0), clients=1, count=1)  # warm-up
        alone = closed_load(server.url, prompts(server, 3, seed=1), clients=1, count=3).first_token_p50
        background = server.requests(text_only(4 * RUNNING, max_tokens=512, seed=2))
        with undisturbed():
            watch = run(_watch(bench, server.url, background, prompts(server, 4 * bench.effort.rounds, seed=3)))
    quiet = [gap for window in watch.alone for gap in watch.within(window)]
    busy = [gap for window in watch.beside for gap in watch.touching(window)]
    for name, seen in (("by themselves", quiet), ("beside a long prompt", busy)):
        report.rows.append((name, *(ms(percentile(seen, share)) for share in (50, 99, 100))))
    base = percentile(quiet, 99)
    gaps = [percentile(watch.touching(window), 99) for window in watch.beside]
    in_ms = Estimate.of([1e3 * gap for gap in gaps])
    report.goals.append(Goal("p99 between tokens beside a long prompt, ms", in_ms, at_most=GAP_MS))
    report.goals.append(Goal("the same / without one", Estimate.of([gap / base for gap in gaps])))
    slower = Estimate.of([first / alone for first in watch.firsts])
    report.goals.append(Goal("the long prompt's first token, beside rows / alone", slower, at_most=1.5))
    report.notes.append(f"Alone, the long prompt's first token takes {ms(alone)}.")
    return report


async def _watch(bench: Bench, url: str, background: Sequence[bytes], prompts: Sequence[bytes]) -> _Watch:
    """Watch the rows by themselves and then beside a prompt, for each of the prompts."""
    watch, stopping = _Watch(), False

    async def row(place: int) -> None:
        connection = await Connection.open(url)
        for request in itertools.cycle([*background[place:], *background[:place]]):
            if stopping:
                break
            watch.answers.append(await connection.ask(request))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for place in range(RUNNING):
            group.create_task(row(place))
        connection = await Connection.open(url)
        for prompt in bench.each(prompts, "long-prompt"):
            await asyncio.sleep(SETTLE_SECONDS)
            begun = perf_counter()
            await asyncio.sleep(2 * SETTLE_SECONDS)
            watch.alone.append((begun, perf_counter()))
            answer = await connection.ask(prompt)
            watch.beside.append((answer.due, answer.marks[0]))
            watch.firsts.append(answer.first_token)
        connection.close()
        stopping = True
    return watch


def same_image(bench: Bench) -> Report:
    """The second question about a picture and those after it, against the first; one client, nothing else running."""
    report = Report(
        "same-image",
        f"{QUESTIONS} questions about a picture of 336 to 1,024 pixels, {SMALL.image_tokens} image tokens, small model",
        ("question", "first token, median"),
    )
    firsts, others = [], []
    chance = random.Random(0)
    with autosteer(bench.checkpoint(SMALL)) as server:
        warm = [chat("What is it?", _url(-1, place), max_tokens=4) for place in range(len(PICTURES))]
        closed_load(server.url, server.requests(warm), clients=1, count=len(warm))
        pictures = [(number, place) for number in range(2 * bench.effort.rounds) for place in range(len(PICTURES))]
        for number, place in bench.each(pictures, "same-image"):
            bodies = same_image_questions(_url(number, place), QUESTIONS, max_tokens=4, seed=chance.randrange(2**30))
            load = closed_load(server.url, server.requests(bodies), clients=1, count=QUESTIONS)
            firsts.append(load.first_token[0])
            others.append(percentile(load.first_token[1:], 50))
    report.rows = [("1st", ms(Estimate.of(firsts).value)), ("2nd to 10th", ms(Estimate.of(others).value))]
    ratio = Estimate.of_ratios(others, firsts)
    report.goals.append(Goal("first token, 2nd to 10th question / 1st", ratio, at_most=1 / 3))
    return report


def _url(number: int, place: int) -> str:
    width, height, kind = PICTURES[place]
    return data_url(10_000 + len(PICTURES) * number + place, (width, height), kind)
