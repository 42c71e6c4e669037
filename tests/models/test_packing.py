"""Prompts that share a row: each is as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.backbone import Backbone
from models.packing import Packed
from models.prompt import Prompt
from steering.data.questions import Question
from steering.fitting.offline import open_rows, prompt_of, read_states
from tests.reference.states import prompt_states
from tests.tiny import TinyModels, picture

IMAGE = 9


def prompts(*sequences: list[int]) -> list[Prompt]:
    return [Prompt(ids, {}, ids.count(IMAGE)) for ids in sequences]


def test_what_the_prompts_begin_with_stands_once() -> None:
    (pack,) = Packed.of(prompts([1, IMAGE, 2, 3], [1, IMAGE, 2, 4, 5], [1, IMAGE, 6]), IMAGE, share=True)
    assert (pack.shared, pack.ids, pack.ends) == (2, [1, IMAGE, 2, 3, 2, 4, 5, 6], [3, 6, 7])
    assert Packed.positions([pack]).tolist() == [[0, 1, 2, 3, 2, 3, 4, 2]]
    sees = [[at for at, seen in enumerate(row) if seen] for row in Packed.mask([pack])[0, 0].tolist()]
    assert sees == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6], [0, 1, 7]]


def test_a_prompt_keeps_a_token_of_its_own() -> None:
    (pack,) = Packed.of(prompts([1, 2, 3], [1, 2, 3], [1, 2, 3, 4]), IMAGE, share=True)
    assert (pack.shared, pack.ids, pack.ends) == (2, [1, 2, 3, 3, 3, 4], [2, 3, 5])


def test_the_last_tokens_are_read_where_they_are_the_prompt_s_own() -> None:
    (pack,) = Packed.of(prompts([1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]), IMAGE, share=True, last=3)
    assert (pack.shared, pack.ids, pack.ends) == (2, [1, 2, 3, 4, 5, 3, 4, 6, 7], [2, 3, 4, 6, 7, 8])


@pytest.mark.parametrize("sequences", [([1, 2], [3, 2]), ([1, 4, IMAGE, 5], [1, 6, IMAGE, 5]), ([1], [1, 2])])
def test_prompts_with_nothing_to_share_have_a_row_each(sequences: tuple[list[int], list[int]]) -> None:
    packs = Packed.of(prompts(*sequences), IMAGE, share=True)
    assert [pack.ids for pack in packs] == list(sequences)
    assert [pack.ends for pack in packs] == [[len(ids) - 1] for ids in sequences]


def test_long_texts_have_a_row_each() -> None:
    long = [[1, 2, *[n] * 400] for n in (3, 4)]
    assert [pack.ids for pack in Packed.of(prompts(*long), IMAGE, share=True)] == long
    long = [[*[1] * 900, n, *[2] * 400] for n in (3, 4)]
    assert len(Packed.of(prompts(*long), IMAGE, share=True)) == 1


def test_padding_is_seen_by_no_token_and_sees_something() -> None:
    packs = [
        *Packed.of(prompts([1, 2, 3], [1, 2, 4]), IMAGE, share=True),
        *Packed.of(prompts([1, 5]), IMAGE, share=True),
    ]
    mask = Packed.mask(packs)[:, 0]
    assert not bool(mask[1, :2, 2:].any())
    assert bool(mask.any(-1).all())


def asked() -> list[list[Question]]:
    """Groups about the same images, of different sizes, and texts."""
    images = [picture(3)], [picture(4, (24, 24)), picture(5)]
    return [
        [Question("Is it a circle?", images[0]), Question("Is it a square, and which colour?", images[0])],
        [Question("Hello there! " * 6)],
        [Question(f"Compare {n}" * (1 + n), images[1]) for n in range(3)],
        [Question("Hi"), Question("Hi there, how are you?")],
        [Question("What is it?", images[0])],
    ]


def test_read_together_every_state_is_that_of_the_prompt_alone(backbone: Backbone) -> None:
    layers = list(range(backbone.info.num_layers + 1))
    groups = asked()
    if not backbone.inputs.sees:
        groups = [[replace(question, images=()) for question in group] for group in groups]
    together = read_states(backbone, groups, layers)
    alone = torch.cat([prompt_states(backbone, [question], layers) for group in groups for question in group])
    assert together.shape == alone.shape
    assert (together - alone).abs().max() < 1e-5 * max(1.0, float(alone.abs().max()))
    assert backbone.open_rows == 0


def test_the_images_of_a_group_run_once(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    tokens: list[int] = []
    hook = backbone._decoder.layers[0].register_forward_hook(lambda _, args, __: tokens.append(args[0].shape[1]))
    group = asked()[0]
    read_states(backbone, [group], [2])
    hook.remove()
    lengths = [len(prompt_of(backbone, question).ids) for question in group]
    images = prompt_of(backbone, group[0]).image_tokens
    assert len(tokens) == 1
    assert tokens[0] <= sum(lengths) - images


def test_rows_that_are_open_are_not_touched(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    with open_rows(backbone, [Question("Hello")], 4) as rows:
        backbone.prefill(rows)
        length = rows[0].length
        read_states(backbone, asked(), [1])
        assert (backbone.open_rows, rows[0].length) == (1, length)
