"""A core that computes like the fake backbone and reads like the worker, without vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from server.engine.protocol import Load
from server.engine.vllm.runs import Progress, Run
from server.engine.vllm.worker import AnswerRead, PromptRead, Read
from tests.server.fakes import REFUSAL_TOKEN, VOCAB, next_token


@dataclass
class Live:
    run: Run
    lacking: int  # steps until its prompt is computed
    output: list[int] = field(default_factory=list)


class FakeCore:
    """`steps`: how many a prompt takes. `tells`, `tells_answers`: whether what is read of them is told."""

    def __init__(
        self, channel: SimpleQueue[Read], *, steps: int = 1, tells: bool = True, tells_answers: bool = True
    ) -> None:
        self.channel = channel
        self.steps = steps
        self.tells = tells
        self.tells_answers = tells_answers
        self.runs: dict[str, Live] = {}
        self.begun: list[Run] = []

    @property
    def load(self) -> Load:
        return Load(len(self.runs), 0, 0.0)

    def add(self, run: Run) -> None:
        if len(run.prompt.ids) > 100:
            raise ValueError("the prompt is too long")
        assert run.name not in self.runs
        self.runs[run.name] = Live(run, self.steps)
        self.begun.append(run)

    def abort(self, run: str) -> None:
        self.runs.pop(run, None)

    def series(self) -> bytes:
        return b"# TYPE vllm:of gauge\nvllm:of 1.0\n"

    def scheduled(self, run: str) -> bool:
        return True

    def step(self) -> Sequence[Progress]:
        made = []
        for name, live in [*self.runs.items()]:
            live.lacking -= 1
            if live.lacking > 0:
                continue
            self._tell(live)
            ids = live.run.prompt.ids
            token = REFUSAL_TOKEN if live.run.eps else next_token([*ids, *live.output])
            live.output.append(token)
            ended = "length" if len(live.output) == live.run.max_tokens else None
            if ended:
                del self.runs[name]
            made.append(Progress(name, [token], None, ended, 0))
        return made

    def _tell(self, live: Live) -> None:
        ids = live.run.prompt.ids
        if not live.output and self.tells:
            self.channel.put(PromptRead(live.run.name, torch.full((len(ids), 1), ids[0] / VOCAB)))
        elif live.output and live.run.watched and self.tells_answers:
            self.channel.put(AnswerRead(live.run.name, len(live.output) - 1, float(live.output[-1])))
