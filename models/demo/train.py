"""Trains the demo model from nothing: tokenizer, vision tower on dense labels, projector, quizzes, dialogues.

    python -m models.demo.train --out DIR

Seeded; stops and resumes anywhere: the state after step n is a function of the recipe and n alone (on one machine), and
is written atomically every `--save-every` steps. The finished checkpoint is in DIR/checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from models.demo import around, corpus, samples
from models.demo.processor import (
    END,
    IMAGE,
    PAD,
    PATCH,
    VIDEO,
    DemoProcessor,
    load_processor,
    make_processor,
    train_tokenizer,
)
from models.demo.world import COLOURS, OBJECTS, SIZE
from models.weight_names import use_published_names

log = logging.getLogger("models.demo.train")


@dataclass(frozen=True)
class Recipe:
    """Everything the result depends on."""

    seed: int = 0
    vocab: int = 1536
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    mlp: int = 512
    tower_hidden: int = 128
    tower_layers: int = 4
    tower_steps: int = 3000
    tower_batch: int = 48
    tower_rate: float = 1.5e-3
    align_steps: int = 400
    quiz_steps: int = 1600
    quiz_batch: int = 24
    quiz_rate: float = 2e-3
    quiz_every: int = 4  # of the dialogues' steps, one is a quiz
    late_quiz_every: int = 10  # of "widen" and "surround"
    steps: int = 3400
    batch: int = 16
    rate: float = 1.5e-3
    polish_steps: int = 2300
    polish_rate: float = 1e-3
    widen_steps: int = 4500
    widen_until: int = 2000  # steps with the first shares of samples
    widen_rate: float = 1e-3
    surround_steps: int = 3200
    surround_until: int = 1400  # steps with the first shares of samples
    surround_rate: float = 1e-3
    spread: float = 0.04  # standard deviation of the language model's first weights
    chunk: int = 16  # batches drawn and sorted by length together
    texts: int = 6000  # conversations the tokenizer is trained on
    threads: int = field(default=2, compare=False)
    save_every: int = field(default=200, compare=False)  # steps between saved states


def _decoder_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # as Qwen2's; what is alike is found far away too
        tie_word_embeddings=True,
        initializer_range=recipe.spread,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision with random weights: SigLIP tower, projector, Qwen2."""
    torch.manual_seed(recipe.seed)
    vision = SiglipVisionConfig(
        hidden_size=recipe.tower_hidden,
        intermediate_size=3 * recipe.tower_hidden,
        num_hidden_layers=recipe.tower_layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = _decoder_config(recipe, tokenizer)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _look_for_the_like(model)
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.generation_config.bos_token_id = None
    model.generation_config.do_sample = False
    return model


@torch.no_grad()
def _look_for_the_like(model: LlavaOnevisionForConditionalGeneration) -> None:
    """Starts each head with queries like its keys: a word attends to what is like it before anything is learnt."""
    for layer in model.model.language_model.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        width = layer.self_attn.head_dim
        shared = query.shape[0] // key.shape[0]
        keys = key.view(-1, width, key.shape[1]).repeat_interleave(shared, dim=0).reshape(query.shape)
        query.copy_(keys + 0.5 * query)


class TowerHeads(nn.Module):
    """Linear readers of a patch: object, colour, letter, place. Thrown away after the tower is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, n + 1) for n in (len(OBJECTS), len(COLOURS), 26, 36))

    def forward(self, patches: Tensor) -> list[Tensor]:
        """[B, 36, d] -> logits [B, 36, classes] for object, colour, letter and place."""
        normed = self.norm(patches)
        return [head(normed) for head in self.heads]


def tower_loss(tower: nn.Module, heads: TowerHeads, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the dense labels [B, 4, 6, 6], and how many of each kind (where not 0) are right, [4]."""
    patches = tower(pixels, output_hidden_states=True).hidden_states[-1]
    loss = torch.zeros(())
    right = []
    for logits, label in zip(heads(patches), labels.flatten(2).unbind(1), strict=True):
        loss = loss + F.cross_entropy(logits.flatten(0, 1), label.flatten())
        there = label > 0
        right.append((logits.argmax(-1) == label)[there].float().mean())
    return loss, torch.stack(right)


def answer_loss(model: LlavaOnevisionForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the assistants' tokens."""
    labels = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False)[0][:, :-1]
    learnt = labels != -100
    loss: Tensor = F.cross_entropy(model.lm_head(hidden[learnt]), labels[learnt])
    return loss


def rate_at(step: int, steps: int, peak: float, warm: int = 100) -> float:
    """Linear warm-up, cosine down to 2 % of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes beside and renames, so that a kill leaves the old state or the new one."""
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    beside.replace(path)


@dataclass
class Stage:
    """One resumable optimisation: parameters, a loss of a step number, and where its state is kept."""

    name: str
    module: nn.Module
    loss: Callable[[int], tuple[Tensor, str]]  # step -> loss, what to log
    steps: int
    rate: float
    folder: Path
    save_every: int
    after_save: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Trains to the last step, from wherever the saved state is."""
        weights = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self._groups(), lr=self.rate, betas=(0.9, 0.98))
        path = self.folder / f"{self.name}.pt"
        first = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
            log.info("%s: resumed at step %d of %d", self.name, first, self.steps)
        last = self.steps
        started, mean = time.monotonic(), 0.0
        self.module.train()
        for step in _progress(self.name, first, last):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, self.steps, self.rate)
            # The fused attention's way back takes half of a step on a CPU.
            with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                loss, note = self.loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            mean = loss.item() if mean == 0.0 else 0.98 * mean + 0.02 * loss.item()
            done = step + 1
            if done % 50 == 0 or done == last:
                speed = (done - first) / (time.monotonic() - started)
                log.info("%s: step %d/%d loss %.4f %s %.2f steps/s", self.name, done, self.steps, mean, note, speed)
            if done % self.save_every == 0 or done == last:
                save_atomically(
                    {"module": self.module.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, path
                )
                self.after_save()

    def _groups(self) -> list[dict[str, Any]]:
        """Weights decay, biases and norms do not."""
        learnt = [p for p in self.module.parameters() if p.requires_grad]
        return [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ]


def _progress(name: str, first: int, last: int) -> Iterator[int]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, refresh_per_second=1) as progress:
        task = progress.add_task(name, total=last, completed=first)
        for step in range(first, last):
            yield step
            progress.advance(task)


def get_processor(recipe: Recipe, folder: Path) -> DemoProcessor:
    """The processor in the folder, with a newly trained tokenizer where there is none."""
    if not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(samples.texts(recipe.seed, recipe.texts), recipe.vocab)
        make_processor(tokenizer).save_pretrained(folder)
        log.info("tokenizer: %d tokens", len(tokenizer))
    return load_processor(folder)


def tower_stage(recipe: Recipe, model: LlavaOnevisionForConditionalGeneration, folder: Path) -> Stage:
    """Teaches the tower what each patch shows."""
    tower = model.model.vision_tower
    torch.manual_seed(recipe.seed + 1)
    both = nn.ModuleDict({"tower": tower, "heads": TowerHeads(recipe.tower_hidden)})

    def loss(step: int) -> tuple[Tensor, str]:
        pixels, labels = corpus.dense_batch(f"tower {recipe.seed}", step, recipe.tower_batch)
        value, right = tower_loss(both["tower"], both["heads"], pixels, labels)  # type: ignore[arg-type]
        return value, "object {:.3f} colour {:.3f} letter {:.3f} place {:.3f}".format(*right.tolist())

    return Stage("tower", both, loss, recipe.tower_steps, recipe.tower_rate, folder, recipe.save_every)


def align_stage(
    recipe: Recipe, model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, folder: Path
) -> Stage:
    """Brings a projected patch near the words for what it shows, so that to find a thing is to find what is alike."""
    tower = model.model.vision_tower.requires_grad_(False)
    words = corpus.PatchWords(processor.tokenizer)
    both = nn.ModuleDict({"projector": model.model.multi_modal_projector, "words": model.get_input_embeddings()})

    def loss(step: int) -> tuple[Tensor, str]:
        pixels, labels = corpus.dense_batch(f"align {recipe.seed}", step, recipe.tower_batch)
        with torch.no_grad():
            patches = tower(pixels, output_hidden_states=True).hidden_states[-1]
        projected = F.rms_norm(both["projector"](patches), (recipe.hidden,))
        logits = projected @ both["words"].weight.T  # type: ignore[operator]
        return F.cross_entropy(logits.flatten(0, 1), words(labels).flatten(0, 1)), ""

    return Stage("align", both, loss, recipe.align_steps, recipe.tower_rate, folder, recipe.save_every)


def quiz_stage(
    recipe: Recipe, model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, folder: Path
) -> Stage:
    """Teaches the language model to look up what is where, before it learns to talk; the tower stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    encoder = corpus.Encoder(processor)

    def loss(step: int) -> tuple[Tensor, str]:
        return answer_loss(model, corpus.quiz_batch(encoder, f"quiz {recipe.seed}", step, recipe.quiz_batch)), ""

    return Stage("quiz", model, loss, recipe.quiz_steps, recipe.quiz_rate, folder, recipe.save_every)


def dialogue_stage(
    name: str, recipe: Recipe, model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, folder: Path
) -> Stage:
    """Teaches the language model to talk.

    "dialogue": with a quiz now and then; "polish": without, and more slowly; "widen": small talk, JSON and more;
    "surround": all of it among words that ask for nothing.
    """
    steps, rate, quiz_every = {
        "dialogue": (recipe.steps, recipe.rate, recipe.quiz_every),
        "polish": (recipe.polish_steps, recipe.polish_rate, None),
        "widen": (recipe.widen_steps, recipe.widen_rate, recipe.late_quiz_every),
        "surround": (recipe.surround_steps, recipe.surround_rate, recipe.late_quiz_every),
    }[name]
    model.model.vision_tower.requires_grad_(False)
    encoder = corpus.Encoder(processor)
    kept: dict[int, list[dict[str, Tensor]]] = {}

    def sample(step: int) -> Callable[[random.Random], samples.Conversation]:
        if name == "widen":
            return partial(samples.widened, shares=samples.WIDENED if step < recipe.widen_until else samples.SETTLED)
        if name == "surround":
            return partial(around.amid, shares=around.FIRST if step < recipe.surround_until else around.THEN)
        return samples.conversation

    def loss(step: int) -> tuple[Tensor, str]:
        if quiz_every is not None and step % quiz_every == 0:
            among = f"quiz among {'dialogues' if name == 'dialogue' else name} {recipe.seed}"
            return answer_loss(model, corpus.quiz_batch(encoder, among, step, recipe.quiz_batch)), "quiz"
        chunk, place = divmod(step, recipe.chunk)
        if chunk not in kept:
            kept.clear()
            stream = f"{name} {recipe.seed}"
            kept[chunk] = corpus.batches(encoder, stream, chunk, recipe.batch, recipe.chunk, sample(step - place))
        return answer_loss(model, kept[chunk][place]), ""

    def export() -> None:
        save_checkpoint(model, processor, folder / "checkpoint")

    return Stage(name, model, loss, steps, rate, folder, recipe.save_every, export)


def save_checkpoint(model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, folder: Path) -> None:
    """The model and its processor as stock transformers loads them: files that name no class of ours."""
    model.save_pretrained(folder)
    use_published_names(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for name in ("processor_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        facts = json.loads((folder / name).read_text())
        if "processor_class" in facts:
            facts["processor_class"] = "LlavaOnevisionProcessor"
        for passing in ("is_local", "local_files_only"):
            facts.pop(passing, None)
        (folder / name).write_text(json.dumps(facts, indent=2) + "\n")


def train(recipe: Recipe, folder: Path) -> LlavaOnevisionForConditionalGeneration:
    """The model after all stages, resuming what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "recipe.json"
    if note.exists():
        then = Recipe(**json.loads(note.read_text()))
        assert then == recipe, f"{folder} was begun with another recipe: {then}"
    note.write_text(json.dumps(asdict(recipe), indent=2))
    torch.set_num_threads(recipe.threads)
    processor = get_processor(recipe, folder)
    model = make_model(recipe, processor.tokenizer)
    log.info("model: %d parameters, tower %d", model.num_parameters(), model.model.vision_tower.num_parameters())
    tower_stage(recipe, model, folder).run()
    align_stage(recipe, model, processor, folder).run()
    quiz_stage(recipe, model, processor, folder).run()
    for name in ("dialogue", "polish", "widen", "surround"):
        dialogue_stage(name, recipe, model, processor, folder).run()
    return model.eval()


def surround(recipe: Recipe, folder: Path, start: Path) -> None:
    """The last stage alone, on a finished checkpoint, resuming what the folder holds."""
    torch.set_num_threads(recipe.threads)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    dialogue_stage("surround", recipe, model, load_processor(start), folder).run()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the state and the finished checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    save_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 200,
    start: Annotated[Path | None, typer.Option(help="A finished checkpoint: only the last stage, on it.")] = None,
) -> None:
    """Trains the demo model; run again with the same options to resume."""
    out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(out / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    recipe = Recipe(seed=seed, threads=threads, save_every=save_every)
    if start is None:
        train(recipe, out)
    else:
        surround(recipe, out, start)


if __name__ == "__main__":
    typer.run(main)
