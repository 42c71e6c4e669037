"""What the guard takes of vLLM's steps: `python -m benchmarks.vllm_share`, in the environment of `make test-vllm`.

Shares of one thread's processor time, which other work on the machine hardly changes: it slows both.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.checkpoints import SMALL, checkpoint, serving_dtype
from models.prompt import Prompt
from server.engine.judge import Judge
from server.engine.vllm.engine import VllmEngine
from server.engine.vllm.start import Options, load_vllm
from server.engine.vllm.worker import Worker
from steering.policy import Mode
from tests.tiny import chat, picture
from tests.vllm.models import ask, policy, served

TURNS = 4
TOKENS = 64


def timed(owner: type[Any], name: str, spent: dict[str, float]) -> None:
    """Add what each call of a method takes to `spent`, in seconds of this thread."""
    call: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        began = time.thread_time()
        try:
            return call(*args, **options)
        finally:
            spent[name] += time.thread_time() - began

    setattr(owner, name, measured)


def answer(engine: VllmEngine, prompts: list[Prompt]) -> None:
    """Answer prompts side by side, none of which is flagged."""
    asks = [ask(str(number), prompt, policy(Mode.STEER, 1.0)) for number, prompt in enumerate(prompts)]
    served(engine, [replace(each, max_tokens=TOKENS) for each in asks])


def main() -> None:
    """16 clients, and one, each with a picture of its own."""
    model = checkpoint(SMALL)
    options = Options(max_rows=64, prefill_tokens=2048, cache_gib=1, prefix_cache=True, threads=1)
    engine = load_vllm(str(model.model), model.guard, options, dtype=serving_dtype())
    core: Any = engine._core
    spent: dict[str, float] = defaultdict(float)
    for owner, name in (
        *[(Worker, each) for each in ("read", "steer", "constrain")],
        (Judge, "judge"),
        (type(core._engine.logger_manager), "record"),
        (type(core), "step"),
    ):
        timed(owner, name, spent)
    number = 0
    for clients, rounds in ((16, 4), (1, 12)):
        for _ in range(TURNS):
            spent.clear()
            for _ in range(rounds):
                prompts = []
                for _ in range(clients):
                    number += 1
                    asked = chat(("user", f"what is {number}", 1))
                    prompts.append(engine._inputs.build(asked, [picture(number).resize((SMALL.image, SMALL.image))]))
                answer(engine, prompts)
            shares = {name: f"{seconds / spent['step']:.2%}" for name, seconds in spent.items() if name != "step"}
            print(f"{clients} clients, of {spent['step']:.1f} s: {shares}")


if __name__ == "__main__":
    main()
