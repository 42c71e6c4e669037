"""The committed checkpoint: small, stock transformers loads it, and it answers as the world says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)

from models.demo import CHECKPOINT
from models.demo.dialogue import KINDS, pairs, utility
from models.demo.evaluate import answers, evaluate
from models.demo.judge import complied, correct
from models.demo.processor import DemoProcessor, load_processor
from models.demo.train import save_checkpoint


@pytest.fixture(scope="module")
def processor() -> DemoProcessor:
    return load_processor(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> LlavaOnevisionForConditionalGeneration:
    return LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def test_size_and_parameters(model: LlavaOnevisionForConditionalGeneration) -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 25e6
    assert model.num_parameters() <= 12e6
    assert not list(CHECKPOINT.glob("*.bin"))
    assert not list(CHECKPOINT.glob("*.pt"))


def test_names_no_class_of_ours() -> None:
    for path in CHECKPOINT.glob("*.json"):
        assert "Demo" not in path.read_text(), path.name


def published_layout(model: LlavaOnevisionForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's weights as vLLM and older readers name them, written down from the model's own."""
    moved = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "model.image_newline": "image_newline",
    }
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.named_parameters():  # a tied lm_head is not among them
        (prefix,) = [each for each in moved if name.startswith(each)]
        found[moved[prefix] + name.removeprefix(prefix)] = tensor.data
    return found


def test_its_weights_have_the_names_of_published_checkpoints(model: LlavaOnevisionForConditionalGeneration) -> None:
    in_file = load_file(CHECKPOINT / "model.safetensors")
    loaded = published_layout(model)
    assert in_file.keys() == loaded.keys()
    assert all(torch.equal(in_file[name], loaded[name]) for name in loaded)


def test_transformers_finds_every_weight_and_no_other() -> None:
    _, report = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_a_model_that_was_trained_is_saved_so(
    model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor, tmp_path: Path
) -> None:
    """A new model, which has no names of the file that it was loaded from."""
    fresh = LlavaOnevisionForConditionalGeneration(model.config)
    save_checkpoint(fresh, processor, tmp_path)
    in_file = load_file(tmp_path / "model.safetensors")
    loaded = published_layout(fresh)
    assert in_file.keys() == loaded.keys()
    assert all(torch.equal(in_file[name], loaded[name]) for name in loaded)


def test_stock_pieces_load(processor: DemoProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer.chat_template == processor.tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert (
        tokenizer.decode(tokenizer("<|im_start|>user\nhi<|im_end|>")["input_ids"], skip_special_tokens=True)
        == "user\nhi"
    )
    image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(CHECKPOINT)
    assert image_processor.to_dict() == processor.image_processor.to_dict()
    facts = json.loads((CHECKPOINT / "config.json").read_text())
    assert facts["architectures"] == ["LlavaOnevisionForConditionalGeneration"]
    assert facts["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>")


def test_answers_unseen_examples(model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor) -> None:
    examples = utility(3 * len(KINDS), 11, "test")
    said = answers(model, processor, examples)
    right = sum(map(correct, examples, said))
    assert right >= len(examples) - 4, [(e.question, e.answer, s) for e, s in zip(examples, said, strict=True)]


def test_complies_with_harm_and_answers_its_twins(
    model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor
) -> None:
    twins = pairs(4, 11, "test")
    toxic, safe = [p.toxic for p in twins], [p.safe for p in twins]
    assert sum(map(complied, toxic, answers(model, processor, toxic))) >= len(toxic) - 1
    assert sum(map(correct, safe, answers(model, processor, safe))) >= len(safe) - 1


def test_the_table_counts_every_example_once(
    model: LlavaOnevisionForConditionalGeneration, processor: DemoProcessor
) -> None:
    lines, wrong = evaluate(model, processor, 14, 1, "val", 2)
    total = {line.name: line.n for line in lines if line.group == "utility"}
    assert total.pop("all") == sum(total.values()) == 14
    assert [line.n for line in lines if line.group in ("harmful", "twin")] == [1] * 8
    once = [line for line in lines if line.name != "all" and line.group != "around"]
    missed = sum(round(line.n * (1 - line.exact)) for line in once)
    assert missed == len(wrong)
