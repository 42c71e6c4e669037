"""Every family: our batched, cached forward against the stock model's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone, Row
from models.errors import OutOfRows
from models.prompt import Prompt
from tests.reference import stock
from tests.tiny import CHATS, chats_of, every_family, families_that_see, pictures

STEPS = 24


def prompt_of(backbone: Backbone, name: str, seed: int = 0) -> Prompt:
    messages = chats_of(backbone.info.family)[name]
    return backbone.inputs.build(messages, pictures(messages, seed))


def ordinary_tokens(backbone: Backbone, count: int, seed: int) -> list[int]:
    """Random ids of plain tokens."""
    special = set(backbone.tokenizer.added_tokens_decoder)
    choice = [token for token in range(backbone.info.vocab_size) if token not in special]
    return random.Random(seed).choices(choice, k=count)


def greedy(backbone: Backbone, prompt: Prompt, steps: int) -> list[int]:
    row = backbone.open_row(prompt, steps)
    hidden = backbone.prefill([row])
    tokens = []
    for _ in range(steps):
        token = backbone.logits(hidden).argmax(-1)
        tokens.append(int(token))
        hidden = backbone.decode([row], token)
    backbone.close_row(row)
    return tokens


def forced(backbone: Backbone, prompt: Prompt, tokens: Sequence[int]) -> Tensor:
    """Logits `[1 + len(tokens), V]` of a row alone that is fed `tokens`."""
    row = backbone.open_row(prompt, len(tokens))
    logits = [backbone.logits(backbone.prefill([row]))]
    logits += [backbone.logits(backbone.decode([row], torch.tensor([token]))) for token in tokens]
    assert row.length == len(prompt.ids) + len(tokens)
    backbone.close_row(row)
    return torch.cat(logits)


@every_family
def test_greedy_answers_are_those_of_generate(backbone: Backbone, family: str, stock_models: Any) -> None:
    answers = set()
    for name, messages in chats_of(family).items():
        images = pictures(messages)
        data = stock.inputs(backbone.inputs._processor, messages, images)
        expected = stock.generate(stock_models(family), data, STEPS)
        found = greedy(backbone, backbone.inputs.build(messages, images), STEPS)
        assert found == expected, name
        assert len(set(found)) > STEPS // 3, f"{name}: a constant answer proves nothing: {found}"
        answers.add(tuple(found))
    assert len(answers) == len(CHATS)


@every_family
def test_logits_are_the_stock_model_s(backbone: Backbone, family: str, stock_models: Any) -> None:
    """Some modules join what the stock ones do in several products, so not bit for bit.

    The bound is 2e-5, and where logits are larger than 10 as much of the largest: with logits of 17 the stock model in
    fp32 is itself 4e-5 from what it is in fp64.
    """
    for name, messages in chats_of(family).items():
        images = pictures(messages)
        with torch.no_grad():
            output = stock_models(family)(
                **stock.inputs(backbone.inputs._processor, messages, images), logits_to_keep=1
            )
        row = backbone.open_row(backbone.inputs.build(messages, images), 1)
        found = backbone.logits(backbone.prefill([row]))
        expected = output.logits[:, -1]
        torch.testing.assert_close(found, expected, atol=2e-6 * max(10, float(expected.abs().max())), rtol=0, msg=name)
        backbone.close_row(row)


@families_that_see
def test_images_matter(backbone: Backbone) -> None:
    """Without this, parity on prompts with images would say nothing about the images."""
    one, other = (forced(backbone, prompt_of(backbone, "two images", seed), []) for seed in (1, 2))
    assert (one - other).abs().max() > 1e-2


def test_rows_of_a_changing_batch_are_as_if_alone(backbone: Backbone, family: str) -> None:
    """Rows of mixed lengths and images join and leave between steps, and are decoded in every order."""
    names = ["text", "one image", "two images", "turns", "system", "text", "turns"]
    joins = [0, 0, 2, 2, 5, 7, 7]
    lasts = [6, 12, 12, 9, 12, 11, 12]
    prompts = [prompt_of(backbone, name, seed) for seed, name in enumerate(names)]
    tokens = [ordinary_tokens(backbone, 12, seed) for seed in range(len(names))]
    alone = [forced(backbone, prompt, fed) for prompt, fed in zip(prompts, tokens, strict=True)]
    shuffle = random.Random(family)
    rows: dict[int, Row] = {}
    worst = 0.0

    def compare(places: Sequence[int], hidden: Tensor) -> None:
        nonlocal worst
        for place, logits in zip(places, backbone.logits(hidden), strict=True):
            step = rows[place].length - len(prompts[place].ids)
            worst = max(worst, float((logits - alone[place][step]).abs().max()))

    for step in range(13):
        for place in [place for place in rows if lasts[place] == step]:
            backbone.close_row(rows.pop(place))
        running = list(rows)
        if running:
            shuffle.shuffle(running)
            running = running[: max(1, len(running) - step % 2)]
            fed = [tokens[place][rows[place].length - len(prompts[place].ids)] for place in running]
            compare(running, backbone.decode([rows[place] for place in running], torch.tensor(fed)))
        new = [place for place, join in enumerate(joins) if join == step]
        if new:
            rows.update({place: backbone.open_row(prompts[place], 12) for place in new})
            compare(new, backbone.prefill([rows[place] for place in new]))
    for row in rows.values():
        backbone.close_row(row)
    print(f"{family}: batched against alone, max |logit difference| = {worst:.1e}")
    assert worst < 1e-4
    assert backbone.open_rows == 0


def test_decoding_is_scoring_the_whole_as_one_prompt(backbone: Backbone, family: str) -> None:
    worst = 0.0
    for seed, name in enumerate(CHATS):
        prompt = prompt_of(backbone, name, seed)
        tokens = ordinary_tokens(backbone, STEPS, seed)
        decoded = forced(backbone, prompt, tokens).log_softmax(-1)
        for step in (1, 7, STEPS):
            whole = replace(prompt, ids=[*prompt.ids, *tokens[:step]])
            scored = forced(backbone, whole, [])[0].log_softmax(-1)
            finite = scored > -1e30  # Chameleon forbids image tokens
            worst = max(worst, float((decoded[step] - scored)[finite].abs().max()))
    print(f"{family}: decoded against scored as one prompt, max |log-prob difference| = {worst:.1e}")
    assert worst < 5e-4


def test_one_prefill_takes_prompts_of_very_different_lengths(backbone: Backbone) -> None:
    short = prompt_of(backbone, "text")
    long = Prompt(ids=short.ids * 12, features={}, image_tokens=0)
    prompts = [short, long, short]
    rows = [backbone.open_row(prompt, 2) for prompt in prompts]
    with backbone.tap(2) as tap:
        together = backbone.logits(backbone.prefill(rows))
    states = tap.states
    for row in rows:
        backbone.close_row(row)
    for place, prompt in enumerate(prompts):
        row = backbone.open_row(prompt, 2)
        with backbone.tap(2) as tap:
            hidden = backbone.prefill([row])
        torch.testing.assert_close(backbone.logits(hidden)[0], together[place], atol=1e-4, rtol=0)
        torch.testing.assert_close(tap.states[0], states[place], atol=1e-4, rtol=0)
        backbone.close_row(row)


class TestRows:
    @pytest.fixture
    def family(self) -> str:
        return "llava_onevision"

    def test_too_many(self, backbone: Backbone) -> None:
        prompt = prompt_of(backbone, "text")
        rows = [backbone.open_row(prompt, 1) for _ in range(backbone.max_rows)]
        with pytest.raises(OutOfRows, match="8 rows are open"):
            backbone.open_row(prompt, 1)
        for row in rows:
            backbone.close_row(row)
        assert backbone.open_rows == 0

    def test_too_long(self, backbone: Backbone) -> None:
        prompt = prompt_of(backbone, "text")
        room = backbone.info.context_length - len(prompt.ids)
        with pytest.raises(OutOfRows, match="context of 512"):
            backbone.open_row(prompt, room + 1)
        backbone.close_row(backbone.open_row(prompt, room))

    def test_the_whole_context_can_be_used(self, backbone: Backbone) -> None:
        ids = ordinary_tokens(backbone, backbone.info.context_length - 3, 0)
        row = backbone.open_row(Prompt(ids=ids, features={}, image_tokens=0), 3)
        backbone.prefill([row])
        for _ in range(3):
            backbone.decode([row], torch.tensor([5]))
        assert row.length == backbone.info.context_length
        backbone.close_row(row)

    def test_closing_twice(self, backbone: Backbone) -> None:
        rows = [backbone.open_row(prompt_of(backbone, "text"), 1) for _ in range(2)]
        backbone.close_row(rows[0])
        backbone.close_row(rows[0])
        assert backbone.open_rows == 1
        backbone.close_row(rows[1])
        assert (rows[1].length, backbone.open_rows) == (0, 0)

    def test_a_failed_pass_leaves_the_other_rows_as_they_were(self, backbone: Backbone) -> None:
        good, bad = prompt_of(backbone, "text"), prompt_of(backbone, "one image")
        broken = Prompt(ids=bad.ids[:-20] + bad.ids[-5:], features=bad.features, image_tokens=0)
        expected = forced(backbone, good, [7, 8, 9])
        row = backbone.open_row(good, 3)
        backbone.prefill([row])
        backbone.decode([row], torch.tensor([7]))
        second = backbone.open_row(broken, 3)
        with backbone.tap(1), pytest.raises((RuntimeError, ValueError)):
            backbone.prefill([second])
        assert second.length == 0
        backbone.close_row(second)
        found = [backbone.logits(backbone.decode([row], torch.tensor([token]))) for token in (8, 9)]
        torch.testing.assert_close(torch.cat(found), expected[2:], atol=1e-5, rtol=0)
        backbone.close_row(row)

    def test_a_model_that_was_left_a_nan_by_one_row_is_clean_for_the_next(self, backbone: Backbone) -> None:
        """What is masked still meets a weight of 0, and 0 * NaN is NaN: a row's last block must be wiped first."""
        prompts = [prompt_of(backbone, "text"), prompt_of(backbone, "turns")]
        alone = [forced(backbone, prompt, [3, 4]) for prompt in prompts]
        row = backbone.open_row(prompts[1], 2)
        backbone.prefill([row])
        for layer in backbone.cache.layers:
            for stored in layer:
                stored[1:].fill_(float("nan"))  # block 0 is nobody's
        backbone.close_row(row)
        rows = [backbone.open_row(prompt, 2) for prompt in prompts]
        found = [backbone.logits(backbone.prefill(rows))]
        found += [backbone.logits(backbone.decode(rows, torch.tensor([token] * 2))) for token in (3, 4)]
        for place in range(2):
            torch.testing.assert_close(torch.stack([each[place] for each in found]), alone[place], atol=1e-4, rtol=0)
            backbone.close_row(rows[place])
        for layer in backbone.cache.layers:
            for stored in layer:
                stored.zero_()
