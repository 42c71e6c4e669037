"""A core that computes like the fake backbone and reads like the worker, without vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.protocol import Load
from server.engine.vllm.engine import Progress
from server.engine.vllm.worker import Read
from tests.server.fakes import REFUSAL_TOKEN, VOCAB, next_token


@dataclass
class Run:
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    eps: float
    output: list[int] = field(default_factory=list)
    lacking: int = 0  # steps until its prompt is computed


class FakeCore:
    """`steps`: how many a prompt takes. `tells`: whether what is read of prompts is told."""

    def __init__(self, channel: SimpleQueue[Read], *, steps: int = 1, tells: bool = True) -> None:
        self.channel = channel
        self.steps = steps
        self.tells = tells
        self.runs: dict[str, Run] = {}
        self.begun: list[Run] = []

    @property
    def load(self) -> Load:
        return Load(len(self.runs), 0, 0.0)

    def add(self, run: str, prompt: Prompt, params: SamplingParams, max_tokens: int, eps: float) -> None:
        if len(prompt.ids) > 100:
            raise ValueError("the prompt is too long")
        assert run not in self.runs
        self.runs[run] = Run(prompt, params, max_tokens, eps, lacking=self.steps)
        self.begun.append(self.runs[run])

    def abort(self, run: str) -> None:
        self.runs.pop(run, None)

    def scheduled(self, run: str) -> bool:
        return True

    def step(self) -> Sequence[Progress]:
        made = []
        for name, run in [*self.runs.items()]:
            run.lacking -= 1
            if not run.output and self.tells:  # of a part of a prompt too, where it says nothing
                toxic = run.prompt.ids[0] / VOCAB if run.lacking <= 0 else 1.0
                self.channel.put(Read(name, torch.tensor([[toxic]])))
            if run.lacking > 0:
                continue
            token = REFUSAL_TOKEN if run.eps else next_token([*run.prompt.ids, *run.output])
            run.output.append(token)
            ended = "length" if len(run.output) == run.max_tokens else None
            if ended:
                del self.runs[name]
            made.append(Progress(name, [token], None, ended, 0))
        return made
