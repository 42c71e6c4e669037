"""Tools, calls and results whose words spell special tokens and syntax, by thousands: none of it gets any power."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken

from models.call_grammar import CallGrammar
from models.calls import FAMILIES
from models.grammar import plain_json
from models.inputs import InputBuilder
from models.schema import compile_source
from tests.models import test_tools
from tests.models.test_calls import TEMPLATES, over
from tests.models.test_tools import called, tool
from tests.server.scripted import EOS, byte_tokenizer
from tests.tiny import TinyModels

FRAGMENTS = [
    "<|im_end|>", "<|im_start|>system\n", "<|im_start|>", "<|im_", "end|>", "<tool_call>", "</tool_call>", "[ARGS]",
    "[TOOL_CALLS]", "<|python_tag|>", "<|image_pad|>", "<|eot_id|>", '"', "\\", "\n", '"}}', '"}\n', "{{", "}}", "{%",
    "%json {", "start: TEXT", "/", "'", " ", "é", "\ud7ff", "\u2028", "\ue0f00\ue0f1", "\ue0f2", "a", "0",
]  # fmt: skip
COUNTS = [100, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def words(chance: Random) -> str:
    return "x" + "".join(chance.choices(FRAGMENTS, k=chance.randint(0, 6)))


def schema(chance: Random, key: str, value: str) -> dict[str, Any]:
    said = {"type": "string", "description": value, "title": key}
    wanted = chance.choice([{"enum": [value]}, {"const": value}, said])
    return {"type": "object", "description": value, "properties": {key: wanted}, "required": [key]}


@pytest.fixture(scope="module")
def builders(tiny_models: TinyModels) -> list[InputBuilder]:
    inputs = tiny_models.backbone("qwen2").inputs
    return [
        InputBuilder(inputs._processor, inputs._family, TEMPLATES[name], inputs.image_token_id)
        for name in ("hermes", "mistral")
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_no_prompt_has_a_special_token_of_theirs(builders: list[InputBuilder], count: int) -> None:
    plain = {"type": "object", "properties": {"k": {"enum": ["v"]}}, "required": ["k"]}
    told = [_told("n", "d", plain)]
    prompts = [builder.build(called("n", {"k": "v"}, "r"), [], tools=told) for builder in builders]
    harmless = [test_tools.special(*each) for each in zip(builders, (prompt.ids for prompt in prompts), strict=True)]
    for seed in range(count):
        chance = Random(seed)
        description, key, value, result = (words(chance) for _ in range(4))
        name = "".join(chance.choices("aim_-end0", k=9))  # all that an API takes
        told = [_told(name, description, schema(chance, key, value))]
        for builder, expected in zip(builders, harmless, strict=True):
            prompt = builder.build(called(name, {key: value}, result), [], tools=told)
            assert test_tools.special(builder, prompt.ids) == expected, seed


def _told(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    told = tool(name, description)
    told["function"]["parameters"] = parameters
    return told


@pytest.mark.parametrize("count", COUNTS)
def test_no_answer_has_a_special_token_that_is_none_of_a_call_s_syntax(count: int) -> None:
    tokenizer = byte_tokenizer()
    tokens = ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|im_end|>", "<|image_pad|>"]
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    vocabulary = LLTokenizer(plain_json(tokenizer), n_vocab=len(tokenizer), eos_token=[EOS])
    special = frozenset(tokenizer.convert_tokens_to_ids(tokens))
    syntaxes = [over(syntax, tokenizer) for syntax in FAMILIES.values()]
    for seed in range(count):
        chance = Random(seed)
        syntax = chance.choice(syntaxes)
        functions = {f"f{number}": schema(chance, words(chance), words(chance)) for number in range(2)}
        grammar = CallGrammar(syntax, functions, forced=chance.random() < 0.5)
        matcher = compile_source(vocabulary, grammar.source())
        text = syntax.triggers[-1] + syntax.first("f0")
        assert matcher.consume_tokens(list(text.encode())), seed
        for _ in range(200):
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
            assert special & {*allowed} <= {*syntax.marks.values()}, seed
            if EOS in allowed:
                break
            assert matcher.consume_token(chance.choice(allowed)), seed
