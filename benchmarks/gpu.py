"""`python -m benchmarks.gpu`: a model of LLaVA-OneVision-7B's shape on one CUDA machine, weights random, nothing saved.

Needs torch, transformers, cachetools, tokenizers, pillow, jinja2, numpy and safetensors, and no server. `--tiny` runs
the same code on a CPU with a tiny model; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers

from benchmarks.estimate import Estimate
from benchmarks.inprocess import EngineRun, generate, synchronize
from benchmarks.report import Goal, Report
from models.attention import PAGED
from models.backbone import Backbone, BackboneInfo
from models.cache import BLOCK, PagedCache
from models.families import FAMILIES
from models.fused import fuse
from models.inputs import InputBuilder
from models.layout import Layout
from models.load import cache_shape
from models.prompt import Prompt
from steering.guard import Guard
from steering.head import RefusalHead
from steering.policy import Mode, Policy
from steering.prober import Prober
from steering.readers import LastToken

EOS, PAD, IMAGE = 0, 1, 2  # ids; the head's first rows are zero, so that no answer ends early
UNFLAGGED = Policy("default", Mode.STEER, threshold=1.0, eps=1.0, refusal="No.")


@dataclass(frozen=True)
class Size:
    """A model, and how much is measured."""

    text: dict[str, Any]
    vision: dict[str, Any]
    prompt: int = 256  # tokens
    answer: int = 128
    streams: int = 64
    guarded: int = 16  # rows of the guard's comparison
    rounds: int = 5  # each after one that warms up
    fine_rounds: int = 20
    copied: int = 2**32  # bytes


FULL = Size(
    text={
        "vocab_size": 152_000,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    vision={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
)
TINY = Size(
    text={
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    prompt=16,
    answer=6,
    streams=4,
    guarded=2,
    rounds=2,
    fine_rounds=2,
    copied=2**20,
)


# the model ---------------------------------------------------------------------------------------------------------


def make_model(size: Size, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a transformers model
    """A random model, made where it stays."""
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **size.vision},
        text_config={
            "model_type": "qwen2",
            "max_position_embeddings": 32_768 if size is FULL else 256,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "tie_word_embeddings": False,
            **size.text,
        },
        image_token_index=IMAGE,
        video_token_index=IMAGE + 1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with device:
        model = transformers.LlavaOnevisionForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.get_output_embeddings().weight.data[: IMAGE + 2] = 0
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    return model.eval().requires_grad_(False)


class _Ids:
    """Stands in for an `InputBuilder`: only token ids are fed."""

    template_hash = ""

    def build_ids(self, ids: Sequence[int]) -> Prompt:
        return Prompt(list(ids), {}, 0)

    def layout(self, ids: Sequence[int]) -> Layout:
        return Layout(len(ids), [len(ids) - 1], [(0, len(ids))], has_image=False)


def make_backbone(model: Any, size: Size) -> Backbone:  # noqa: ANN401
    """The model as ours serves it; what `models.load.load_backbone` does, without a folder. The model is changed."""
    model.get_decoder().config._attn_implementation = PAGED
    fuse(model.get_decoder())
    text = model.config.get_text_config()
    rows = size.streams
    shape = cache_shape(text, model.dtype, model.device)
    tokens = rows * 2 * (size.prompt + size.answer)
    cache = PagedCache(shape, -(-tokens // BLOCK), keep=False)
    info = BackboneInfo(
        name="random",
        revision=None,
        architecture=type(model).__name__,
        family=model.config.model_type,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        context_length=text.max_position_embeddings,
        dtype=model.dtype,
        device=model.device,
        eos_ids=frozenset({EOS}),
        template_hash="",
        parameters=sum(each.numel() for each in model.get_decoder().parameters()),
        weights_hash="",
    )
    inputs = cast(InputBuilder, _Ids())
    family = FAMILIES[model.config.model_type]
    return Backbone(model, family, inputs, cast(Any, None), info, IMAGE, rows, cache, 0)


def make_guard(backbone: Backbone) -> Guard:
    """A random guard of the middle layer."""
    info = backbone.info
    torch.manual_seed(1)
    manifest = cast(Any, SimpleNamespace(layer=info.num_layers // 2, probe_layers=[]))
    guard = Guard(manifest, LastToken(Prober(info.hidden_size)), RefusalHead(info.hidden_size), {})
    return guard.to(info.device).requires_grad_(requires_grad=False)


# what is measured --------------------------------------------------------------------------------------------------


@dataclass
class Measuring:
    """A model, its backbone, and the report that grows."""

    size: Size
    model: Any  # a stock one, of the same shape
    backbone: Backbone
    report: Report

    def run(self, bandwidth: float) -> None:
        """Everything, in a few minutes on an H100."""
        self.model_itself()
        plain = EngineRun.of(self.backbone)
        self.one_stream(plain, bandwidth)
        self.many_streams(plain)
        self.guard(plain, EngineRun.of(self.backbone, make_guard(self.backbone), UNFLAGGED))
        if self.model.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            self.found("memory, at most", f"{peak / 1e9:.1f} GB", peak_bytes=peak)

    def found(self, what: str, shown: str, **data: float) -> None:
        """A row, also at once for whoever waits."""
        self.report.rows.append((what, shown))
        self.report.data |= data
        print(f"{what}: {shown}", flush=True)

    def model_itself(self) -> None:
        """Its size."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.found("weights", f"{weights / 1e9:.2f} GB", weights_bytes=weights)

    def one_stream(self, run: EngineRun, bandwidth: float) -> None:
        """A single row against the time that reading the weights once takes."""
        limit = bandwidth / _read_per_token(self.model)
        speeds = [1 / self._step(run, 1, seed=number) for number in range(-1, self.size.rounds)][1:]
        speed = median(speeds)
        self.found("one stream", f"{speed:.1f} tokens/s, limit {limit:.1f}", one_stream=speed, limit=limit)
        share = Estimate.of([speed / limit for speed in speeds])
        self.report.goals.append(Goal("one stream, of the bandwidth's limit", share, at_least=0.8))

    def many_streams(self, run: EngineRun) -> None:
        """Whole answers against `model.generate` on one static batch."""
        engine: list[float] = []
        static: list[float] = []
        streams, answer = self.size.streams, self.size.answer
        for number in range(-1, self.size.rounds):
            asked = self._prompts(streams, seed=100 + number)
            engine.append(streams * answer / run.answer(asked, answer))
            static.append(streams * answer / generate(self.model, asked, answer))
        speed, other = median(engine[1:]), median(static[1:])
        shown = f"{speed:,.0f} tokens/s, model.generate {other:,.0f}"
        self.found(f"{streams} streams", shown, streams=speed, generate=other)
        ratio = Estimate.of_ratios(engine[1:], static[1:])
        self.report.goals.append(Goal(f"{streams} streams, engine / model.generate", ratio, at_least=2.0))

    def guard(self, plain: EngineRun, guarded: EngineRun) -> None:
        """A step of rows that a guard has scored and not flagged, against one of rows without a guard."""
        off: list[float] = []
        on: list[float] = []
        for number in range(-1, self.size.fine_rounds):
            turns = [(plain, off), (guarded, on)]
            for run, times in turns if number % 2 else turns[::-1]:
                times.append(self._step(run, self.size.guarded, seed=200 + number))
        step = median(off[1:])
        self.found(f"{self.size.guarded} rows, a step", f"{step * 1e3:.3f} ms", step=step)
        ratio = Estimate.of_ratios(on[1:], off[1:])
        self.report.goals.append(Goal("between tokens, guard / none", ratio, at_most=1.005))

    def _prompts(self, count: int, seed: int) -> list[Prompt]:
        """Random prompts of one length."""
        chance = random.Random(seed)
        vocabulary = self.size.text["vocab_size"]
        return [Prompt([chance.randrange(8, vocabulary) for _ in range(self.size.prompt)], {}, 0) for _ in range(count)]

    def _step(self, run: EngineRun, rows: int, seed: int) -> float:
        """Seconds of a step once all rows are running, the mean over half an answer."""
        requests = run.start(self._prompts(rows, seed), self.size.answer)
        run.step(self.size.answer // 4)  # warm-up
        steps = self.size.answer // 2
        seconds = run.step(steps) / steps
        run.end(requests)
        return seconds


def measure(size: Size, device: torch.device, dtype: torch.dtype) -> Report:
    """Make the model and measure it."""
    report = Report("gpu", f"{_name(device)}, {dtype}", ("what", "found"))
    bandwidth = copy_bandwidth(device, size.copied)
    begun = perf_counter()
    model = make_model(size, device, dtype)
    backbone = make_backbone(make_model(size, device, dtype), size)
    backbone.capture()
    measuring = Measuring(size, model, backbone, report)
    measuring.found("copy, read and written", f"{bandwidth / 1e9:,.1f} GB/s", copy_bytes_per_second=bandwidth)
    measuring.found("the model was made in", f"{perf_counter() - begun:.1f} s")
    measuring.run(bandwidth)
    report.notes.append(f"torch {torch.__version__}, transformers {transformers.__version__}")
    return report


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy reads and writes; the best of several."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        begun = perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, perf_counter() - begun)
    return 2 * size / best


def _read_per_token(model: Any) -> int:  # noqa: ANN401
    """Bytes of weights that one token of one stream needs: the decoder's layers and norm, and the head."""
    embeddings = model.get_input_embeddings().weight
    read = [p for p in model.get_decoder().parameters() if p is not embeddings]
    read += model.get_output_embeddings().parameters()
    return sum(p.numel() * p.element_size() for p in read)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the code")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    if options.tiny:
        report = measure(TINY, torch.device("cpu"), torch.float32)
    else:
        report = measure(FULL, torch.device("cuda"), torch.bfloat16)
    said = json.dumps(report.json(), indent=2)
    print(f"\n{report.markdown()}\n{said}")
    if options.out is not None:
        options.out.write_text(said)


if __name__ == "__main__":
    main()
