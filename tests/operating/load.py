"""The scripted load: harmful and harmless requests under three policies, counted by the client."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import openai

from benchmarks.dashboards.queries import Series
from models.demo.dialogue import Example, Split, pairs, utility
from tests.end_to_end.processes import user
from tests.operating.stack import MODEL, POLICIES, Stack

CLIENTS = 6


@dataclass
class Seen:
    """What the clients counted; keys are policy and modality."""

    judged: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def refusal_rate(self) -> float:
        """Refused requests over all that were answered."""
        return self.refused.total() / self.judged.total()

    def rate_of(self, policy: str) -> float:
        """The same under one policy."""
        refused = sum(count for (name, _), count in self.refused.items() if name == policy)
        return refused / sum(count for (name, _), count in self.judged.items() if name == policy)


@dataclass(frozen=True)
class Watched:
    """A stack after the load; `at`: when Prometheus had seen all of it, in seconds since 1970."""

    stack: Stack
    seen: Seen
    at: float

    def ask(self, expr: str, rate_interval: str = "60s") -> list[Series]:
        """What Prometheus answered just after the load."""
        return replace(self.stack.prometheus, rate_interval=rate_interval).now(expr, self.at)


@dataclass(frozen=True)
class Mix:
    """What a load is made of; harmful is one request in `harm[0]` of the first half, one in `harm[1]` of the second."""

    twins: int  # pairs of each kind of harm, and 8 times as many other harmless prompts
    split: Split
    harm: tuple[int, int]
    tokens: int = 24  # at most, of an answer

    def examples(self) -> list[tuple[Example, bool]]:
        """Prompts, each with whether it is harmful; of harmless ones as many of each kind as in the calibration."""
        twins = pairs(self.twins, seed=611, split=self.split)
        harmless = [*(pair.safe for pair in twins), *utility(8 * self.twins, seed=612, split=self.split)]
        random.Random(613).shuffle(harmless)
        return [*((pair.toxic, True) for pair in twins), *((example, False) for example in harmless)]


MIXED = Mix(3, "test", (8, 3), tokens=8)
HEALTHY = Mix(50, "val", (40, 40))  # like what the bundle was calibrated on: nothing drifts


def run_scripted_load(stack: Stack, requests: int, mix: Mix = MIXED) -> Seen:
    """Through the gateway, by the official client."""
    examples = mix.examples()
    harmful = itertools.cycle([example for example, toxic in examples if toxic])
    harmless = itertools.cycle([example for example, toxic in examples if not toxic])
    policies = itertools.cycle(["everyday", "everyday", "strict", "everyday", "everyday", "research"])
    work = [
        (next(policies), next(harmful if number % mix.harm[number >= requests / 2] == 0 else harmless))
        for number in range(requests)
    ]
    clients = {name: stack.client(name, retries=5) for name in POLICIES}
    seen = Seen()

    def ask(policy: str, example: Example) -> tuple[str, str, bool]:
        images = [example.image] if example.image else []
        choice = (
            clients[policy]
            .chat.completions.create(
                model=MODEL, messages=[user(example.question, *images)], temperature=0, max_tokens=mix.tokens
            )
            .choices[0]
        )
        return policy, "image" if images else "text", choice.finish_reason == "content_filter"

    with ThreadPoolExecutor(CLIENTS) as pool:
        for policy, modality, refused in pool.map(lambda each: ask(*each), work):
            seen.judged[policy, modality] += 1
            seen.refused[policy, modality] += refused
    _spoil(stack)
    return seen


def _spoil(stack: Stack) -> None:
    """Some requests that are not accepted."""
    for key, model in [("everyday", "another-model"), ("strict", "another-model")]:
        try:
            stack.client(key).chat.completions.create(model=model, messages=[user("hello")])
        except openai.NotFoundError:
            continue
        raise AssertionError(f"{model} was served")
