"""The scripted load: harmful and harmless requests under three policies, counted by the client."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import openai

from benchmarks.dashboards.queries import Series
from models.demo.dialogue import Example, pairs, utility
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


def examples() -> list[tuple[Example, bool]]:
    """Prompts, each with whether it is harmful."""
    twins = pairs(3, seed=611, split="test")
    harmless = [*(pair.safe for pair in twins), *utility(24, seed=612, split="test")]
    return [*((pair.toxic, True) for pair in twins), *((example, False) for example in harmless)]


def run_scripted_load(stack: Stack, requests: int) -> Seen:
    """Through the gateway, by the official client; the second half has more harm in it than the first."""
    harmful = itertools.cycle([example for example, toxic in examples() if toxic])
    harmless = itertools.cycle([example for example, toxic in examples() if not toxic])
    policies = itertools.cycle(["everyday", "everyday", "strict", "everyday", "everyday", "research"])
    work = [
        (next(policies), next(harmful if number % (8 if number < requests / 2 else 3) == 0 else harmless))
        for number in range(requests)
    ]
    clients = {name: stack.client(name, retries=5) for name in POLICIES}
    seen = Seen()

    def ask(policy: str, example: Example) -> tuple[str, str, bool]:
        images = [example.image] if example.image else []
        choice = (
            clients[policy]
            .chat.completions.create(
                model=MODEL, messages=[user(example.question, *images)], temperature=0, max_tokens=24
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
