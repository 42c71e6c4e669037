"""What guarding costs: the same prompts in turn with and without the guard; and what clients of servers saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.progress import Progress

from models.backbone import Backbone
from steering.data.questions import Question
from steering.evaluation.store import Output
from steering.evaluation.suite import Asked
from steering.fitting.offline import Steer, batches, reply
from steering.guard import Guard
from steering.policy import Policy, is_flagged

REPEATS = 5
PROMPTS = 48


def local_cost(
    backbone: Backbone,
    guard: Guard,
    policy: Policy,
    asked: Sequence[Asked],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Time to first token, between tokens, and tokens/s of each way to guard, in batches; ratios to `original`.

    `asked`: prompts that were answered and not flagged, so that all ways but `steer-always` give the same answers.
    """
    chosen = asked[:PROMPTS]
    if not chosen:
        return []
    questions = [each.row.question for each in chosen]
    limit = max(each.max_tokens for each in chosen)

    def gated(scores: Sequence[float]) -> list[float]:
        return [policy.eps if is_flagged(score, policy.threshold) else 0.0 for score in scores]

    def always(scores: Sequence[float]) -> list[float]:
        return [policy.eps] * len(scores)

    ways: dict[str, tuple[Guard | None, Steer]] = {
        "original": (None, _never),
        "autosteer": (guard, gated),
        "steer-always": (guard, always),
    }
    task = progress.add_task("cost", total=REPEATS * len(ways))
    seen: dict[str, list[_Timing]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, (acting, steer) in ways.items():  # in turn: what disturbs the machine disturbs all
            seen[way].append(_Timing.of(backbone, acting, steer, questions, limit))
            progress.advance(task)
    return [_summary(way, timings, seen["original"]) for way, timings in seen.items()]


def _never(scores: Sequence[float]) -> list[float]:
    return [0.0] * len(scores)


class _Timing:
    """One pass over the prompts."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.between: list[float] = []
        self.tokens = 0
        self.seconds = 0.0

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        guard: Guard | None,
        steer: Steer,
        questions: Sequence[Question],
        limit: int,
    ) -> _Timing:
        timing = cls()
        for group in batches(questions, backbone.max_rows):
            started = last = time.perf_counter()
            steps = 0

            def tick(live: Sequence[int]) -> None:
                nonlocal last, steps
                now = time.perf_counter()
                (timing.between if steps else timing.first).extend([now - last] * len(live))
                timing.tokens += len(live)
                last, steps = now, steps + 1

            reply(backbone, group, guard, steer, limit, tick)
            timing.seconds += time.perf_counter() - started
        return timing


def _summary(way: str, timings: Sequence[_Timing], baseline: Sequence[_Timing]) -> dict[str, Any]:
    measures: dict[str, Callable[[_Timing], float]] = {
        "first_token": lambda each: median(each.first),
        "between_tokens": lambda each: median(each.between or [0.0]),
        "tokens_per_second": lambda each: each.tokens / each.seconds,
    }
    found: dict[str, Any] = {"system": way, "prompts": len(timings[0].first), "repeats": len(timings)}
    for name, measure in measures.items():
        own, other = [measure(each) for each in timings], [measure(each) for each in baseline]
        found[name] = median(own)
        # The median of each round's ratio: a disturbance that lasts a round is in both.
        found[f"{name}_ratio"] = median(a / b if b else 1.0 for a, b in zip(own, other, strict=True))
    return found


def remote_cost(name: str, outputs: Mapping[str, Output]) -> dict[str, Any] | None:
    """Medians over a server's streamed answers, and its tokens over the time in which it was asked anything."""
    done = [o for o in outputs.values() if o.error is None and o.first_token is not None and o.seconds is not None]
    if not done:
        return None
    between = [
        (o.seconds - o.first_token) / (o.tokens - 1) for o in done if o.tokens > 1 and o.seconds and o.first_token
    ]
    busy = _covered([(o.started or 0.0, (o.started or 0.0) + (o.seconds or 0.0)) for o in done])
    return {
        "system": name,
        "prompts": len(done),
        "first_token": median(o.first_token for o in done if o.first_token is not None),
        "between_tokens": median(between) if between else None,
        "tokens_per_second": sum(o.tokens for o in done) / busy if busy else None,
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in at least one of the spans."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
