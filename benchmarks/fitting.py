"""`python -m benchmarks.fitting`: what fitting a guard costs, and whether its statistics keep what they promise.

Costs are ratios against the obvious way within one run, on a random LLaVA-OneVision of 30 M parameters.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.backbone import Backbone
from models.load import load_backbone
from steering.calibration import conformal_threshold
from steering.data.questions import PictureFile, Question
from steering.fitting.collect import collect_forced, collect_states
from steering.fitting.layers import auroc, choose_layer, layer_figures
from steering.fitting.offline import batches
from steering.fitting.training import Forced, Optimisation, States, fit_head, fit_prober
from steering.specs import LayerFigures
from tests.reference import stock
from tests.reference import training as reference
from tests.tiny import chat, make_tiny, picture

BATCH = 16
# Two refusals of 12 tokens: which one comes cannot be known, so that the loss does not fall to 0.
REFUSALS = list(range(20, 32)), list(range(40, 52))
ROUNDS = 5
WIDTH, LAYERS, STRENGTHS = 64, 6, (0.5, 1.0, 2.0, 4.0)  # of the synthetic states

# Beside the tiny model's own: 30 M parameters, most of them in the decoder.
TEXT: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 7,
    "layer_types": None,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
VISION = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}


@dataclass(frozen=True)
class Figure:
    """One row: what was measured, how much, and what it must be."""

    what: str
    measured: str
    target: str = ""
    kept: bool | None = None  # None: no target


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    collecting: int = 480  # prompts
    forcing: int = 96
    epochs: int = 30
    memory: tuple[int, ...] = (1500, 3000, 6000)
    twins: int = 10_000


QUICK = Sizes(collecting=32, forcing=16, epochs=3, memory=(200, 400), twins=1000)


def questions(count: int, folder: Path) -> list[Question]:
    """Twins of many lengths; every second pair is about a picture of its own."""
    found = []
    for pair in range(count // 2):
        images = [PictureFile(folder / f"{pair}.png")] if pair % 2 else []
        for file in images:
            picture(pair, (40 + pair % 24, 64 - pair % 24)).save(file.path)
        about = "Please describe the image, then compare. " * (1 + pair // 2 % 4)
        found += [Question(f"{about}{word} {pair}", images) for word in ("Compare the", "Answer the")]
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = perf_counter()
    work()
    return perf_counter() - started


# collecting --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def one_by_one(model: Any, processor: Any, asked: Sequence[Question]) -> Tensor:  # noqa: ANN401
    """The paper's way: one whole forward per prompt, every layer's states of every token; `[N, layers, d]`."""
    states = []
    for question in asked:
        messages = chat(("user", question.text, len(question.images)))
        data = stock.inputs(processor, messages, question.pictures())
        output = model(**_cast(data, model.dtype), output_hidden_states=True)
        states.append(torch.stack([hidden[0, -1] for hidden in output.hidden_states]))
    return torch.stack(states)


def collecting(model: Any, backbone: Backbone, asked: Sequence[Question]) -> Iterator[Figure]:  # noqa: ANN401
    """Prompts per second of both ways, alternating."""
    processor, layers = backbone.inputs._processor, range(backbone.info.num_layers + 1)

    def ours() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            chunks = collect_states([backbone], asked, layers, Path(folder), lambda _: None)
            return torch.cat(list(chunks))

    one, other = one_by_one(model, processor, asked[:BATCH]).float(), ours()[:BATCH].float()  # and a warm-up
    far = float((one - other).norm() / one.norm())
    slow, fast = [], []
    for _ in range(ROUNDS):
        slow.append(len(asked) / timed(lambda: one_by_one(model, processor, asked)))
        fast.append(len(asked) / timed(ours))
    ratio = median(b / a for a, b in zip(slow, fast, strict=True))
    yield Figure("collecting, the paper's way", f"{median(slow):.1f} prompts/s")
    yield Figure("collecting, ours", f"{median(fast):.1f} prompts/s (states: {far:.1g} apart)")
    yield Figure("collecting, ratio", f"{ratio:.2f} x", ">= 3 x", ratio >= 3)


def _cast(data: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in data.items()}


# the Refusal Head --------------------------------------------------------------------------------------------------


def head_training(
    model: Any,  # noqa: ANN401
    backbone: Backbone,
    asked: Sequence[Question],
    epochs: int,
) -> Iterator[Figure]:
    """Seconds of training on cached states, collecting them included, against a backbone that runs every epoch."""
    optimisation = Optimisation(epochs=epochs, patience=epochs)
    cut = len(asked) * 3 // 4
    parts = asked[:cut], asked[cut:]

    def logits(hidden: Tensor) -> Tensor:
        return backbone.logits(hidden.to(backbone.info.dtype))

    def cached() -> list[float]:
        train, held_out = (Forced.join([_cached(backbone, part, refusal) for refusal in REFUSALS]) for part in parts)
        return fit_head(train, held_out, logits, optimisation=optimisation)[1]

    prepared = [
        [[_forced_inputs(backbone, group, refusal) for group in batches(part, BATCH)] for refusal in REFUSALS]
        for part in parts
    ]

    def every_epoch() -> list[float]:
        train, held_out = (lambda inputs=inputs: _run(model, inputs) for inputs in prepared)
        return reference.fit_head(train, held_out, logits, backbone.info.hidden_size, optimisation)

    losses: dict[str, list[float]] = {}
    fast = timed(lambda: losses.update(cached=cached()))
    slow = timed(lambda: losses.update(every=every_epoch()))
    one, other = losses["cached"][-1], losses["every"][-1]
    yield Figure(f"head, {epochs} epochs, backbone in each", f"{slow:.1f} s, loss {other:.4f}")
    yield Figure(f"head, {epochs} epochs, cached", f"{fast:.1f} s, loss {one:.4f}")
    yield Figure("head, ratio", f"{slow / fast:.1f} x", ">= 10 x", slow / fast >= 10)
    yield Figure("head, losses differ by", f"{abs(one / other - 1):.3%}", "<= 1 %", abs(one / other - 1) <= 0.01)


def _cached(backbone: Backbone, asked: Sequence[Question], refusal: Sequence[int]) -> Forced:
    with tempfile.TemporaryDirectory() as folder:
        chunks = collect_forced([backbone], asked, refusal, Path(folder), lambda _: None)
        return Forced.of(torch.cat(list(chunks)), refusal)


def _forced_inputs(backbone: Backbone, group: Sequence[Question], refusal: Sequence[int]) -> dict[str, Any]:
    """Prompts padded on the left, and after each the refusal but for its last token."""
    chats = [(chat(("user", question.text, len(question.images))), question.pictures()) for question in group]
    data = stock.batch(backbone.inputs._processor, chats, "left")
    forced = torch.tensor(refusal[:-1]).expand(len(group), -1)
    data["input_ids"] = torch.cat([data["input_ids"], forced], dim=1)
    data["attention_mask"] = torch.cat([data["attention_mask"], torch.ones_like(forced)], dim=1)
    return _cast(data, backbone.info.dtype)


@torch.no_grad()
def _run(model: Any, prepared: Sequence[Sequence[dict[str, Any]]]) -> Forced:  # noqa: ANN401
    def hidden(data: dict[str, Any], count: int) -> Tensor:
        states: Tensor = model.model(**data, use_cache=False).last_hidden_state[:, -count:]
        return states.float()

    return Forced.join(
        [
            Forced.of(torch.cat([hidden(data, len(refusal)) for data in group]), refusal)
            for group, refusal in zip(prepared, REFUSALS, strict=True)
        ]
    )


# memory ------------------------------------------------------------------------------------------------------------


def memory(folder: Path, counts: Sequence[int]) -> Iterator[Figure]:
    """Peak resident memory of collecting so many prompts, each number in a process of its own."""
    peaks = []
    for count in counts:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks.append(pool.submit(_peak, folder, count).result())
        yield Figure(f"peak memory, {count} prompts", f"{peaks[-1] / 2**20:.1f} MiB")
    growth = max(peaks) / peaks[0]
    yield Figure("peak memory, most against first", f"{growth:.3f} x", "<= 1.05 x", growth <= 1.05)


def _peak(folder: Path, count: int) -> int:
    """Bytes. Not `ru_maxrss`, which starts at the parent's."""
    backbone = load_backbone(folder, device="cpu", dtype=torch.float32, max_rows=BATCH)
    with tempfile.TemporaryDirectory() as to:
        asked = questions(count, Path(to))
        states = Path(to) / "states"
        states.mkdir()
        collect_states([backbone], asked, range(backbone.info.num_layers + 1), states, lambda _: None)
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


# what the statistics promise ---------------------------------------------------------------------------------------


def twins(count: int, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Toxic and safe states `[n, d]`: Gaussian, their means `strength` apart along one direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(99)), dim=0)
    toxic, safe = torch.randn(2, count, WIDTH, generator=generator)
    return toxic + strength * direction, safe


def labelled(pair: tuple[Tensor, Tensor]) -> States:
    """Both sides of twins, one after the other."""
    toxic, safe = pair
    return States(torch.cat(pair), torch.cat([torch.ones(len(toxic)), torch.zeros(len(safe))]).long())


def planted(count: int, strength: float) -> Figure:
    """Layers of noise, and one with a direction: whether it is found, and its prober is as good as can be."""
    optimisation = Optimisation()
    rows: list[LayerFigures] = []
    for layer in range(LAYERS):
        at = strength if layer == 3 else 0.0
        pair, held_out = twins(count, at, 10 + layer), labelled(twins(count // 4, at, 30 + layer))
        rows.append(layer_figures(layer, pair, labelled(pair), held_out, optimisation=optimisation))
    chosen = {choose_layer(rows, select) for select in ("sas", "sas-among-best", "auroc")}
    prober, _ = fit_prober(labelled(twins(count, strength, 13)), labelled(twins(count // 4, strength, 33)))
    fresh = labelled(twins(50_000, strength, 50))
    found, optimum = auroc(prober(fresh.x), fresh.y), 0.5 * (1 + math.erf(strength / 2))
    right = "right layer" if chosen == {3} else f"layers {sorted(chosen)}, planted in 3"
    kept = chosen == {3} and abs(found - optimum) <= 0.01
    return Figure(
        f"planted direction, strength {strength:g}",
        f"{right}, AUROC {found:.4f}, optimum {optimum:.4f}",
        "right, within 0.01",
        kept,
    )


def no_signal(count: int) -> Figure:
    """Shuffled labels."""
    parts = [labelled(twins(size, 3.0, seed)) for seed, size in enumerate((count, count // 4, 10_000))]
    generator = torch.Generator().manual_seed(5)
    train, held_out, fresh = (States(p.x, p.y[torch.randperm(len(p.y), generator=generator)]) for p in parts)
    found = auroc(fit_prober(train, held_out)[0](fresh.x), fresh.y)
    return Figure("labels shuffled, AUROC", f"{found:.4f}", "0.5 +- 0.05", abs(found - 0.5) <= 0.05)


def false_positives(count: int, draws: int = 200, samples: int = 550) -> Figure:
    """The true rate of the 1 % threshold of a fitted prober, over fresh draws of the calibration part.

    In theory its mean is `1 - ceil(0.99 (n + 1)) / (n + 1)`; 550 samples leave more room below 1 % than chance takes.
    """
    prober, _ = fit_prober(labelled(twins(count, 2.0, 0)), labelled(twins(count // 4, 2.0, 1)))
    population = prober.score(twins(200_000, 2.0, 2)[1])
    rates = []
    for draw in range(draws):
        threshold = conformal_threshold(prober.score(twins(samples, 2.0, 1000 + draw)[1]), 0.01)
        assert threshold is not None
        rates.append(float((population >= threshold).double().mean()))
    theory = 1 - math.ceil(0.99 * (samples + 1)) / (samples + 1)
    found = f"mean {mean(rates):.3%} (theory {theory:.3%}), one draw +- {stdev(rates):.2%}"
    what = f"realised FPR at 1 %, {draws} draws of {samples}"
    return Figure(what, found, "mean <= 1 %", mean(rates) <= 0.01)


def figures(sizes: Sizes, dtype: str, folder: Path) -> Iterator[Figure]:
    """All rows, one after the other."""
    (folder / "images").mkdir()
    big = make_tiny("llava_onevision", folder / "big", text=TEXT, vision=VISION)
    backbone = load_backbone(big, device="cpu", dtype=dtype, max_rows=BATCH)
    model = stock.load_model("llava_onevision", big).to(backbone.info.dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Figure("random LLaVA-OneVision", f"{count / 1e6:.1f} M parameters, {backbone.info.dtype}")
    yield from collecting(model, backbone, questions(sizes.collecting, folder / "images"))
    yield from head_training(model, backbone, questions(sizes.forcing, folder / "images"), sizes.epochs)
    yield from memory(make_tiny("llava_onevision", folder / "tiny"), sizes.memory)
    yield false_positives(sizes.twins)
    for strength in STRENGTHS:
        yield planted(sizes.twins, strength)
    yield no_signal(sizes.twins)


def main(
    dtype: Annotated[str, typer.Option(help="Of the 30 M model; auto is what `autosteer fit` takes.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON to this file.")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A trial run; its figures mean nothing.")] = False,
) -> None:
    """Measure what fitting costs and what its statistics keep."""
    console = Console()
    rows = []
    table = Table("what", "measured", "target", "kept")
    with tempfile.TemporaryDirectory() as folder, console.status("measuring") as status:
        for row in figures(QUICK if quick else Sizes(), dtype, Path(folder)):
            rows.append(row)
            table.add_row(row.what, row.measured, row.target, {None: "", True: "yes", False: "NO"}[row.kept])
            status.update(f"measured: {row.what}")
    console.print(table)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    typer.run(main)
