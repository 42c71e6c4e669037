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
from models.families import FAMILIES
from models.info import BackboneInfo
from models.load import load_backbone
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from models.weight_names import use_published_names
from server.engine.own import OwnEngine
from server.engine.protocol import Engine
from server.engine.scheduler import Scheduler
from server.engine.vllm.engine import VllmEngine
from server.engine.vllm.start import Options, load_vllm
from server.request import Ask, Event
from steering.bundle import load_guard, save_bundle
from steering.guard import Guard
from steering.policy import UNWATCHED, Decision, Mode, OutputPolicy, Policy
from steering.readers import Cell, Conversation
from steering.specs import CellSpec, ConversationSpec
from tests.server.guards import random_answers, random_guard, rising
from tests.tiny import chat, chats_of, make_tiny, mrope, picture, pictures

WORDS = [
    "red",
    "square",
    "blue",
    "circle",
    "sign",
    "picture",
    "left",
    "right",
    "colour",
    "many",
    "compare",
    "please",
    "describe",
    "image",
    "of",
    "what",
]

# Prompts longer than a step's tokens are computed in chunks; blocks of vLLM's cache have 128 tokens on a CPU.
OPTIONS = Options(max_rows=8, prefill_tokens=96, cache_gib=0.1, prefix_cache=True, threads=1)
TOKENS = 20  # as many as a refusal needs, and some


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
    return _pair(backbone, demo.CHECKPOINT, demo.GUARD, prompts, 1)


TEXT = {"hidden_size": 128, "head_dim": 32}  # vLLM's attention on a CPU has no heads of fewer than 32 numbers
# Gemma's windows are as long as its blocks in vLLM, and shorter than the long prompt.
_GEMMA = {"sliding_window": 128, "query_pre_attn_scalar": 32}
_QWEN = {"rope_parameters": mrope([4, 6, 6])}
OTHERWISE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma3": _GEMMA,
    "gemma3_text": _GEMMA,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": {"rope_parameters": mrope([6, 5, 5], mrope_interleaved=True)},
}
TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"hidden_size": 128},
    "qwen2_5_vl": {"out_hidden_size": 128},
    "qwen3_vl": {"out_hidden_size": 128},
}
PUBLISHED = ("llava", "llava_next", "llava_onevision", "gemma3")


def tiny_model(family: str, folder: Path, **more: Any) -> tuple[Path, Path, Backbone]:
    """A tiny random model, and a random guard: folders, and our backbone. `more`: of the decoder's config."""
    text = {**TEXT, **OTHERWISE.get(family, {}), **more}
    model = make_tiny(family, folder / "model", text=text, vision=TOWERS.get(family))
    if family in PUBLISHED:
        use_published_names(model)
    backbone = load_backbone(model, device="cpu", dtype=torch.float32, max_rows=8)
    guard = whole_guard(backbone.info)
    save_bundle(folder / "guard", guard.manifest, guard.reader, guard.head, guard.calibration, guard.answers)
    return model, folder / "guard", backbone


def whole_guard(info: BackboneInfo) -> Guard:
    """Reads the whole conversation after the first block, in the middle and after the last norm, and answers."""
    layers = [1, 2, info.num_layers]
    guard = random_guard(info, answers=random_answers(info))
    cells = [Cell(False, 40, 50), Cell(False, None, 50)]
    reader = Conversation(info.hidden_size * len(layers), cells)
    generator = torch.Generator().manual_seed(3)
    reader.weight.copy_(torch.randn(reader.weight.shape, generator=generator) * info.hidden_size**-0.5)
    reader.calibrate([[rising(-3.0, 9.0)] * 3, [rising(-3.0, 12.0)] * 3], 1.5, -2.0)
    conversation = ConversationSpec(window=reader.window, cells=[CellSpec(**cell._asdict()) for cell in cells])
    whole = {"probe_layers": layers, "probe_position": "conversation", "prober_hidden": 0, "conversation": conversation}
    manifest = guard.manifest.model_copy(update=whole)
    return Guard(manifest, reader, guard.head, {}, guard.answers)


def tiny_pair(family: str, folder: Path, ranks: int = 1) -> Pair:
    """The same in both engines."""
    model, guard, backbone = tiny_model(family, folder)
    chats = chats_of(family)
    prompts = {name: backbone.inputs.build(each, pictures(each)) for name, each in chats.items()}
    return _pair(backbone, model, guard, prompts, ranks)


def _pair(backbone: Backbone, model: Path, folder: Path, prompts: dict[str, Prompt], ranks: int) -> Pair:
    words = " ".join(f"number {number} of many words" for number in range(24))
    prompts["long"] = backbone.inputs.build(chat(("user", words, 0)), [])
    guard = load_guard(folder, backbone.info)
    vllm = load_vllm(str(model), folder, OPTIONS._replace(ranks=ranks), dtype="float32")
    return Pair(OwnEngine(backbone, guard, Scheduler(8, 96)), vllm, guard, prompts)


def many_prompts(pair: Pair, count: int) -> list[Prompt]:
    """Different prompts, every other one with a picture where the family sees."""
    found = []
    for number in range(count):
        words = " ".join(WORDS[(number * step + number // 7) % len(WORDS)] for step in range(2, 5 + number % 9))
        seen = FAMILIES[pair.own.backbone.info.family].sees and number % 2 == 0
        found.append(pair.prompt(f"{words} {number}?", picture(number) if seen else None))
    return found


def policy(mode: Mode, threshold: float = 0.0, output: OutputPolicy = UNWATCHED) -> Policy:
    return Policy("default", mode, threshold, 1.0, "I can't help with that.", output=output)


def ask(
    name: str, prompt: Prompt, of: Policy, *, leader: str | None = None, scores: bool = False, **sampling: Any
) -> Ask:
    params = replace(SamplingParams.GREEDY, **sampling)
    return Ask(name, prompt, params, TOKENS, of, leader=leader, scores=scores)


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


def end(pair: Pair) -> None:
    """End the processes of vLLM's ranks."""
    core: Any = pair.vllm._core
    core._engine.engine_core.shutdown()


def preempt(pair: Pair) -> None:
    """Have vLLM give up every row that runs, with all of its cache."""
    core: Any = pair.vllm._core
    assert core._engine.reset_prefix_cache(reset_running_requests=True)


def served(engine: Engine[Any], asks: Sequence[Ask]) -> dict[str, list[Event]]:
    put(engine, *asks)
    return until_idle(engine)


def tokens(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def decision(events: Sequence[Event]) -> Decision:
    found = events[-1].request.decision
    assert found is not None
    return found
