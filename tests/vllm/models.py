"""Models that vLLM and our own engine both load, with a guard bundle, and what each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from models import demo
from models.backbone import Backbone
from models.load import load_backbone
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.protocol import Engine
from server.engine.scheduler import Scheduler
from server.engine.vllm.engine import VllmEngine
from server.engine.vllm.start import Options, load_vllm
from server.request import Ask, Event
from steering.bundle import load_guard, save_bundle
from steering.guard import Guard
from steering.policy import Decision, Mode, Policy
from tests.server.guards import random_guard
from tests.tiny import chat, chats_of, make_tiny, pictures

# Prompts longer than a step's tokens are computed in chunks; blocks of vLLM's cache have 128 tokens on a CPU.
OPTIONS = Options(max_rows=8, prefill_tokens=96, cache_gib=0.1, prefix_cache=True, threads=1)
TOKENS = 12


@dataclass
class Pair:
    """One model in both engines, in float32, with the same guard."""

    own: OwnEngine
    vllm: VllmEngine
    guard: Guard
    prompts: dict[str, Prompt]

    def prompt(self, text: str, image: Image.Image | None) -> Prompt:
        """One message of a user."""
        images = [] if image is None else [image]
        return self.own.backbone.inputs.build(chat(("user", text, len(images))), images)


def demo_pair() -> Pair:
    """The bundled model and its guard: LLaVA-OneVision, read after the last layer."""
    backbone = load_backbone(demo.CHECKPOINT, device="cpu", dtype=torch.float32, max_rows=8)
    texts = ["What colour is the sign?", "How do I copy this badge?", "Tell me about the picture."]
    chats = {f"{text} {images}": chat(("user", text, images)) for text in texts for images in (0, 1, 2)}
    prompts = {name: backbone.inputs.build(each, pictures(each)) for name, each in chats.items()}
    return _pair(backbone, demo.CHECKPOINT, demo.GUARD, prompts)


def tiny_model(family: str, folder: Path) -> tuple[Path, Path, Backbone]:
    """A tiny random model, and a random guard that reads a layer in the middle: folders, and our backbone."""
    # vLLM's attention on a CPU has no heads of fewer than 32 numbers.
    model = make_tiny(family, folder / "model", text={"hidden_size": 128, "head_dim": 32})
    backbone = load_backbone(model, device="cpu", dtype=torch.float32, max_rows=8)
    guard = random_guard(backbone.info)
    save_bundle(folder / "guard", guard.manifest, guard.reader, guard.head, guard.calibration)
    return model, folder / "guard", backbone


def tiny_pair(family: str, folder: Path) -> Pair:
    """The same in both engines."""
    model, guard, backbone = tiny_model(family, folder)
    chats = chats_of(family)
    prompts = {name: backbone.inputs.build(each, pictures(each)) for name, each in chats.items()}
    return _pair(backbone, model, guard, prompts)


def _pair(backbone: Backbone, model: Path, folder: Path, prompts: dict[str, Prompt]) -> Pair:
    words = " ".join(f"number {number} of many words" for number in range(24))
    prompts["long"] = backbone.inputs.build(chat(("user", words, 0)), [])
    guard = load_guard(folder, backbone.info)
    vllm = load_vllm(str(model), folder, OPTIONS, dtype="float32")
    return Pair(OwnEngine(backbone, guard, Scheduler(8, 96)), vllm, guard, prompts)


def policy(mode: Mode, threshold: float = 0.0) -> Policy:
    return Policy("default", mode, threshold, 1.0, "I can't help with that.")


def ask(name: str, prompt: Prompt, of: Policy, *, leader: str | None = None, **sampling: Any) -> Ask:
    params = replace(SamplingParams.GREEDY, **sampling)
    return Ask(name, prompt, params, TOKENS, of, leader=leader)


def put(engine: Engine[Any], *asks: Ask) -> None:
    for request in engine.prepare(asks):
        engine.add(request)


def until_idle(engine: Engine[Any]) -> dict[str, list[Event]]:
    """What became of all that was asked."""
    told: dict[str, list[Event]] = {}
    while not engine.idle:
        for event in engine.step():
            told.setdefault(event.request.id, []).append(event)
    return told


def served(engine: Engine[Any], asks: Sequence[Ask]) -> dict[str, list[Event]]:
    put(engine, *asks)
    return until_idle(engine)


def tokens(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def decision(events: Sequence[Event]) -> Decision:
    found = events[-1].request.decision
    assert found is not None
    return found
