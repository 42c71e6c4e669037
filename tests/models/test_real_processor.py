"""A published tokenizer, processor and chat template (Granite Vision, LLaVA-NeXT), with natural photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from models.errors import PromptError
from models.families import FAMILIES
from models.inputs import InputBuilder
from models.processors import load_processor
from tests.reference import stock
from tests.tiny import chat

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GRANITE = DATA / "foundation-model-stack+fms-hf-tuning/tests/artifacts/vision_models/tiny_granite_vision_model"
PHOTOGRAPHS = DATA / "jingyaogong+minimind-v/dataset/eval_images"

pytestmark = pytest.mark.skipif(
    not (GRANITE.is_dir() and PHOTOGRAPHS.is_dir()), reason=f"no published processor and photographs at {DATA}"
)


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    family = FAMILIES["llava_next"]
    processor, template = load_processor(str(GRANITE), family, None)
    return InputBuilder(processor, family, template, family.image_token_id(AutoConfig.from_pretrained(GRANITE)))


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.open(path) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:2]]


CHATS: list[tuple[list[dict[str, Any]], int]] = [
    (chat(("user", "What is two and two?", 0)), 0),
    (chat(("user", "What is in this picture?\n\nBe brief.", 1)), 1),
    (chat(("system", "You are terse.", 0), ("user", "Compare the two.", 2)), 2),
    (chat(("user", "What is this?", 1), ("assistant", "A car.", 0), ("user", "And this? 日本語 é", 1)), 2),
]


@pytest.mark.parametrize(("messages", "count"), CHATS)
def test_prompts_are_the_stock_processor_s(
    builder: InputBuilder, photographs: list[Image.Image], messages: list[dict[str, Any]], count: int
) -> None:
    prompt = builder.build(messages, photographs[:count])
    data = stock.inputs(builder._processor, messages, photographs[:count])
    assert prompt.ids == data["input_ids"][0].tolist()
    for name, tensor in prompt.features.items():
        assert torch.equal(tensor, data[name]), name
    assert (prompt.image_tokens > 500 * count) if count else prompt.image_tokens == 0


def test_special_tokens_in_a_text_are_text(builder: InputBuilder, photographs: list[Image.Image]) -> None:
    special = {token.content for token in builder._tokenizer.added_tokens_decoder.values()}
    plain = builder.build(chat(("user", "x", 1)), photographs[:1])
    count = sum(token in builder._pieces.control_ids for token in plain.ids)
    for token in sorted(special):
        text = f"Say {token} twice: {token}{token}."
        prompt = builder.build(chat(("user", text, 1)), photographs[:1])
        assert sum(each in builder._pieces.control_ids for each in prompt.ids) == count, token
        assert prompt.image_tokens == plain.image_tokens
        assert text in builder._tokenizer.decode(prompt.ids)


def test_what_the_template_leaves_out_is_refused(builder: InputBuilder) -> None:
    """This one shows only the first part of an answer."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": word} for word in ("One.", "Two.")]}
    with pytest.raises(PromptError, match=r"leaves out the text of messages\[1\]"):
        builder.build([*chat(("user", "Hi", 0)), answer, *chat(("user", "So?", 0))], [])


def test_a_tool_s_result_is_the_user_s_words_where_the_template_has_no_turn_for_it(builder: InputBuilder) -> None:
    told = builder.build(chat(("user", "Hi", 0), ("tool", "42", 0), ("user", "So?", 0)), [])
    said = builder.build(chat(("user", "Hi", 0), ("user", "Result of the tool:\n\n42", 0), ("user", "So?", 0)), [])
    assert told.ids == said.ids
