"""Paging, chunks, prefix hits and images seen before change no answer: every family, fp32, greedy."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from models.backbone import Backbone, Row
from models.prompt import Prompt
from tests.models.test_backbone import STEPS, forced, greedy, ordinary_tokens, prompt_of
from tests.tiny import CHATS, TinyModels, families_that_see

TOLERANCE = 1e-4


def long_prompt(backbone: Backbone, length: int, seed: int = 0) -> Prompt:
    """A chat with an image in it, made longer in front and behind."""
    prompt = prompt_of(backbone, "one image", seed)
    before, behind = (ordinary_tokens(backbone, (length - len(prompt.ids)) // 2, seed + n) for n in (0, 100))
    return Prompt([*before, *prompt.ids, *behind], prompt.features, prompt.image_tokens, prompt.pictures)


def in_chunks(backbone: Backbone, prompt: Prompt, sizes: Sequence[int]) -> torch.Tensor:
    """Logits at the end of a prompt that is computed a chunk at a time."""
    row = backbone.open_row(prompt, 4)
    hidden = torch.empty(0)
    turn = 0
    while row.pending:
        hidden = backbone.forward([row], [backbone.chunk(row, sizes[turn % len(sizes)])])
        turn += 1
    backbone.close_row(row)
    return backbone.logits(hidden)


@pytest.mark.parametrize("sizes", [[1], [7], [64], [5, 100, 1]])
def test_chunks_give_what_the_whole_gives(backbone: Backbone, sizes: list[int]) -> None:
    prompt = long_prompt(backbone, 150)
    torch.testing.assert_close(in_chunks(backbone, prompt, sizes), forced(backbone, prompt, []), atol=TOLERANCE, rtol=0)


def test_prompts_of_all_lengths_are_computed_in_passes_of_few_sizes(tiny_models: TinyModels) -> None:
    backbone, sizes = tiny_models.backbone("llama"), set()
    hook = backbone._decoder.layers[0].register_forward_pre_hook(lambda _, args: sizes.add(args[0].shape[1]))
    for length in range(2, 300, 7):
        row = backbone.open_row(Prompt(ordinary_tokens(backbone, length, length), {}, 0), 4)
        backbone.prefill([row])
        backbone.close_row(row)
    hook.remove()
    assert len(sizes) <= 300 / 16
    assert max(sizes) <= 300 * 9 / 8


def test_chunks_beside_decoding_rows(backbone: Backbone) -> None:
    """The step of a server: some rows add a token while a long prompt is computed piece by piece."""
    decoding = [prompt_of(backbone, name, seed) for seed, name in enumerate(["text", "one image", "turns"])]
    tokens = [ordinary_tokens(backbone, 12, seed) for seed in range(3)]
    alone = [forced(backbone, prompt, fed) for prompt, fed in zip(decoding, tokens, strict=True)]
    late = long_prompt(backbone, 140, seed=5)
    expected = forced(backbone, late, [])
    rows = [backbone.open_row(prompt, 12) for prompt in decoding]
    backbone.prefill(rows)
    newcomer = backbone.open_row(late, 4)
    found = torch.empty(0)
    for step in range(12):
        for row, fed in zip(rows, tokens, strict=True):
            row.append(fed[step])
        work: list[Row] = [*rows, newcomer] if newcomer.pending else rows
        counts = [1, 1, 1] + ([backbone.chunk(newcomer, 17)] if newcomer.pending else [])
        logits = backbone.logits(backbone.forward(work, counts))
        if len(work) == 4 and not newcomer.pending:
            found = logits[3:]
        for place in range(3):
            torch.testing.assert_close(logits[place], alone[place][step + 1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    for row in [*rows, newcomer]:
        backbone.close_row(row)


def test_a_known_prefix_gives_the_same_answer(remembering: Backbone, backbone: Backbone) -> None:
    for length in (100, 130, 200):
        prompt = long_prompt(remembering, length)
        expected = greedy(backbone, prompt, STEPS)
        assert greedy(remembering, prompt, STEPS) == expected
        row = remembering.open_row(prompt, STEPS)
        assert row.length == (len(prompt.ids) - 1) // 64 * 64 > 0, "the prefix is known, the last token is computed"
        other = remembering.open_row(prompt, STEPS)
        hidden = remembering.prefill([row, other])
        torch.testing.assert_close(hidden[0], hidden[1], atol=TOLERANCE, rtol=0)
        remembering.close_row(row)
        remembering.close_row(other)
        assert greedy(remembering, prompt, STEPS) == expected
        if remembering._image_token_id in expected[:9]:
            continue  # in a prompt it would stand for an image
        longer = Prompt([*prompt.ids, *expected[:9]], prompt.features, prompt.image_tokens, prompt.pictures)
        assert greedy(remembering, longer, STEPS - 9) == expected[9:]


@families_that_see
def test_another_image_is_another_prefix(remembering: Backbone, backbone: Backbone) -> None:
    """The same tokens, images of the same size: only what is in them differs."""
    one, other = (long_prompt(remembering, 150, seed=3) for _ in range(2))
    features = prompt_of(remembering, "one image", seed=9)
    other = Prompt(one.ids, features.features, features.image_tokens, features.pictures)
    assert one.pictures[0].digest != other.pictures[0].digest
    greedy(remembering, one, 2)
    torch.testing.assert_close(forced(remembering, other, []), forced(backbone, other, []), atol=TOLERANCE, rtol=0)


@families_that_see
def test_what_a_pass_will_encode_is_known_before_it(remembering: Backbone) -> None:
    prompt = long_prompt(remembering, 150, seed=21)
    expected = sum(picture.tokens for picture in prompt.pictures)
    first = min(place for place, token in enumerate(prompt.ids) if token == remembering._image_token_id)
    row = remembering.open_row(prompt, 2)
    found = [remembering.unseen(row, count) for count in (first, first + 1, row.pending)]
    assert found == [0, prompt.pictures[0].tokens, expected]
    before = remembering.encoded
    remembering.prefill([row])
    tokens, seconds = remembering.encoded.since(before)
    assert tokens == expected
    assert seconds > 0
    again = remembering.open_row(Prompt([*prompt.ids[:-9]], prompt.features, prompt.image_tokens, prompt.pictures), 2)
    assert remembering.unseen(again, again.pending) == 0, "its picture is remembered"
    for each in (row, again):
        remembering.close_row(each)


def test_the_prober_s_state_is_right_under_a_hit(remembering: Backbone, backbone: Backbone) -> None:
    prompt = long_prompt(remembering, 150, seed=4)
    states = []
    for model in (backbone, remembering, remembering):
        row = model.open_row(prompt, 2)
        with model.tap([1, 3]) as tap:
            model.prefill([row])
        states.append(tap.states)
        model.close_row(row)
    torch.testing.assert_close(states[1], states[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(states[2], states[0], atol=TOLERANCE, rtol=0)


def test_rows_that_are_computed_again_go_on_as_before(backbone: Backbone) -> None:
    """What preemption does: a row is closed and opened again with what it had said."""
    for name in CHATS:
        prompt = prompt_of(backbone, name)
        expected = greedy(backbone, prompt, STEPS)
        row = backbone.open_row(prompt, STEPS, expected[:9])
        again = int(backbone.logits(backbone.prefill([row])).argmax())
        backbone.close_row(row)
        assert again == expected[9], name


def test_blocks_are_shared_out_among_changing_rows(remembering: Backbone, backbone: Backbone, family: str) -> None:
    """Random lives of rows over prompts that share prefixes; each answer is that of the row alone."""
    chance = random.Random(family)
    prompts = [long_prompt(backbone, 90 + 20 * (number % 3), seed=number // 3) for number in range(5)]
    fed = [ordinary_tokens(backbone, 70, seed) for seed in range(5)]
    alone = [forced(backbone, prompt, tokens) for prompt, tokens in zip(prompts, fed, strict=True)]
    rows: dict[Row, int] = {}
    for _ in range(90):
        if len(rows) < 6 and chance.random() < 0.3:
            number = chance.randrange(5)
            rows[remembering.open_row(prompts[number], 70)] = number
        if rows and chance.random() < 0.1:
            gone = chance.choice(list(rows))
            del rows[gone]
            remembering.close_row(gone)
        chosen = [row for row in rows if chance.random() < 0.8]
        if not chosen:
            continue
        for row in chosen:
            if not row.pending and len(row.tokens) < len(prompts[rows[row]].ids) + 70:
                row.append(fed[rows[row]][len(row.tokens) - len(prompts[rows[row]].ids)])
        chosen = [row for row in chosen if row.pending]
        if not chosen:
            continue
        counts = [remembering.chunk(row, chance.choice([3, 40, 200])) for row in chosen]
        logits = remembering.logits(remembering.forward(chosen, counts))
        for row, found in zip(chosen, logits, strict=True):
            step = row.length - len(prompts[rows[row]].ids)
            if step >= 0:
                torch.testing.assert_close(found, alone[rows[row]][step], atol=TOLERANCE, rtol=0)
    for row in rows:
        remembering.close_row(row)


def test_chats_one_after_the_other_are_answered_as_by_a_model_that_remembers_none(
    remembering: Backbone, backbone: Backbone
) -> None:
    for name in [*CHATS, *CHATS]:
        prompt = prompt_of(remembering, name)
        assert greedy(remembering, prompt, STEPS) == greedy(backbone, prompt, STEPS), name
