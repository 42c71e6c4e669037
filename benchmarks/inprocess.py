"""The engine and the stock model in this process: the one place that knows how either is driven."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Ask, Request
from steering.policy import Mode, Policy

OFF = Policy("default", Mode.OFF, threshold=1.0, eps=0.0, refusal="")


@dataclass
class EngineRun:
    """An engine, and greedy requests given to it directly."""

    engine: OwnEngine
    policy: Policy = OFF
    _numbers: count[int] = field(default_factory=count)

    @classmethod
    def of(cls, backbone: Any, guard: Any = None, policy: Policy = OFF) -> EngineRun:  # noqa: ANN401
        """An engine that takes prompts of any length in one step."""
        return cls(OwnEngine(backbone, guard, Scheduler(backbone.max_rows, prefill_tokens=2**30)), policy)

    def submit(self, prompts: Sequence[Prompt], tokens: int) -> Sequence[Request]:
        """Queue requests."""
        if self.engine.idle:
            self.engine.read_prompts()
        asks = [Ask(str(next(self._numbers)), each, SamplingParams.GREEDY, tokens, self.policy) for each in prompts]
        requests = self.engine.prepare(asks)
        for request in requests:
            self.engine.add(request)
        return requests

    def start(self, prompts: Sequence[Prompt], tokens: int) -> Sequence[Request]:
        """Queue requests and step until each has its first token."""
        requests = self.submit(prompts, tokens)
        while not all(request.output_ids for request in requests):
            self.engine.step()
        return requests

    def step(self, times: int = 1) -> float:
        """Seconds of so many steps."""
        begun = perf_counter()
        for _ in range(times):
            self.engine.step()
        return perf_counter() - begun

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> float:
        """Seconds from the first prompt to the last token of all."""
        requests = self.submit(prompts, tokens)
        begun = perf_counter()
        while not self.engine.idle:
            self.engine.step()
        seconds = perf_counter() - begun
        assert all(len(request.output_ids) == tokens for request in requests), "an answer ended early"
        return seconds

    def end(self, requests: Sequence[Request]) -> None:
        """Free the requests' rows."""
        for request in requests:
            self.engine.abort(request.id)


class BareRun:
    """The stock model's own batched decode: one token per row and step, logits and argmax included."""

    CACHES = ("dynamic", "static")

    def __init__(self, model: Any, cache: str, sequences: Sequence[Sequence[int]], tokens: int) -> None:  # noqa: ANN401
        ids, mask = left_padded(sequences, model.config.get_text_config().pad_token_id or 0)
        self._model = model
        self._even = bool(mask.all())
        self._mask = mask.to(model.device)
        text = model.config.get_text_config()
        longest = ids.shape[1] + tokens
        self._cache = (
            StaticCache(config=text, max_cache_len=longest) if cache == "static" else DynamicCache(config=text)
        )
        # transformers renamed it in 5.2x
        named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._options = {named: self._cache, "use_cache": True, "logits_to_keep": 1}
        self._next = ids.to(model.device)
        self._places = (self._mask.cumsum(1) - 1).clamp(min=0)
        self.step()

    @torch.inference_mode()
    def step(self) -> float:
        """Seconds of one step."""
        begun = perf_counter()
        mask = None if self._even else self._mask
        output = self._model(input_ids=self._next, attention_mask=mask, position_ids=self._places, **self._options)
        self._next = output.logits[:, -1].argmax(-1, keepdim=True)
        self._places = self._places[:, -1:] + 1
        if not self._even:
            self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        synchronize(self._model.device)
        return perf_counter() - begun


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[Prompt], tokens: int) -> float:  # noqa: ANN401
    """Seconds that `model.generate` takes for the prompts as one static batch."""
    device = model.device
    ids, mask = left_padded([prompt.ids for prompt in prompts], model.config.get_text_config().pad_token_id or 0)
    pixels = [prompt.features["pixel_values"] for prompt in prompts if prompt.features]
    images = {"pixel_values": torch.cat(pixels).to(device, model.dtype)} if pixels else {}
    begun = perf_counter()
    found = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), **images, max_new_tokens=tokens, do_sample=False
    )
    synchronize(device)
    seconds = perf_counter() - begun
    assert found.shape[1] == ids.shape[1] + tokens, "an answer ended early"
    return seconds


def left_padded(sequences: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` that end together, and the mask of what is not padding."""
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[filler] * (width - len(ids)) + list(ids) for ids in sequences])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences])
    return ids, mask


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
