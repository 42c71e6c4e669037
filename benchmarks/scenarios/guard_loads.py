"""What a guard that reads every token keeps of the throughput under loads of new prompts, in CPU time, by turns.

Steps hold what they would by fixed costs of a token. By measured ones each load has batches of its own, and these
differ by a tenth where the guard's work is a hundredth.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours
from benchmarks.estimate import Estimate
from benchmarks.gaps import ANSWER, MOST_TOKENS, load, prompts
from benchmarks.inprocess import OFF
from benchmarks.report import Goal, Report
from benchmarks.scenarios.guard_prompt import CONVERSATION, MONITOR, READERS, one_thread
from models.backbone import Backbone
from models.prompt import Prompt
from server.engine.budget import Budget, Spent
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from steering.guard import Guard

ROWS = 64
MAX_GAP = 0.3  # seconds, the default of the server
AGAIN = "off again"
AT_LEAST = 0.99


class _Reckoned(Budget):
    """A budget by fixed costs, about the small model's: loads that differ in nothing else have the same steps."""

    STEP, PROMPT_TOKEN, PICTURE_TOKEN = 0.015, 0.0005, 0.0001  # seconds

    def observe(self, spent: Spent) -> None:
        """Learn from a step what it should have taken."""
        encoding = spent.encoded_tokens * self.PICTURE_TOKEN
        seconds = self.STEP * bool(spent.decoding) + self.PROMPT_TOKEN * spent.prompt_tokens + encoding
        super().observe(spent._replace(seconds=seconds, encoding=encoding))


class _Case(NamedTuple):
    what: str
    clients: int
    words: int  # 0: a picture and a dozen


CASES = (
    _Case("16 clients, a picture each", 16, 0),
    _Case("48 clients, a picture each", 48, 0),
    _Case("16 clients, 300 words", 16, 300),
)


def run(bench: Bench) -> Report:
    """Closed loads without a guard, with one, and once more without, to see what the method can see."""
    report = Report(
        "guard-loads",
        f"tokens per CPU second of new prompts and answers of {ANSWER} tokens, small model, one thread",
        ("load", "off", AGAIN, CONVERSATION),
    )
    checkpoint = bench.checkpoint(SMALL)
    with one_thread():
        plain, reading = (load_ours(checkpoint, ROWS) for _ in range(2))
        guard = READERS[CONVERSATION](reading)
        for case in CASES:
            speeds: dict[str, list[float]] = {"off": [], AGAIN: [], CONVERSATION: []}
            for number in bench.each(range(-1, bench.effort.rounds), f"guard-loads, {case.what}"):
                asked = prompts(plain, case.clients * (2 if number >= 0 else 1), case.words, number + 2)
                order = [*speeds][:: 1 if number % 2 else -1]
                for name in order:
                    guarded = name == CONVERSATION
                    speed = _speed(reading if guarded else plain, guard if guarded else None, asked, case.clients)
                    if number >= 0:  # the first is the warm-up
                        speeds[name].append(speed)
            report.rows.append((case.what, *(f"{Estimate.of(some).value:.0f}" for some in speeds.values())))
            for name in (AGAIN, CONVERSATION):
                ratio = Estimate.of_ratios(speeds[name], speeds["off"])
                bound = AT_LEAST if name == CONVERSATION else None
                report.goals.append(Goal(f"{case.what}: tokens/s, {name} / off", ratio, at_least=bound))
    return report


def _speed(backbone: Backbone, guard: Guard | None, asked: list[Prompt], clients: int) -> float:
    """Tokens per CPU second, of prompts of which nothing is known."""
    backbone.forget()
    engine = OwnEngine(backbone, guard, Scheduler(ROWS, MOST_TOKENS, MAX_GAP))
    engine.scheduler.budget = _Reckoned(MOST_TOKENS, MAX_GAP)
    return load(engine, asked, clients, OFF if guard is None else MONITOR)[0]
