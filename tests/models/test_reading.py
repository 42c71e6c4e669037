"""What is read of a prompt's tokens: every token's own states, however and whenever they were computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone, Row
from models.prompt import Prompt
from tests.models.test_backbone import prompt_of
from tests.models.test_paging import long_prompt
from tests.reference import stock
from tests.tiny import HIDDEN, TinyModels, chats_of, pictures

TOLERANCE = 1e-4


class Coordinates:
    """Keeps the first coordinates of two layers."""

    layers = (1, 3)
    width = 6

    def read(self, states: Tensor) -> Tensor:
        assert states.shape[1:] == (2, HIDDEN)
        return states[:, :, :3].flatten(1)


@pytest.fixture(autouse=True)
def _read(backbone: Backbone, remembering: Backbone) -> Iterator[None]:
    for each in (backbone, remembering):
        each.read_prompts(Coordinates())
    yield
    for each in (backbone, remembering):
        each.read_prompts(None)


def notes_of(backbone: Backbone, prompts: Sequence[Prompt]) -> list[Tensor]:
    """What is read of prompts in one pass."""
    rows = [backbone.open_row(prompt, 2) for prompt in prompts]
    backbone.prefill(rows)
    return closed(backbone, rows, prompts)


def closed(backbone: Backbone, rows: Sequence[Row], prompts: Sequence[Prompt]) -> list[Tensor]:
    found = [backbone.notes(row, len(prompt.ids)) for row, prompt in zip(rows, prompts, strict=True)]
    for row in rows:
        backbone.close_row(row)
    return found


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_they_are_the_stock_models_states(tiny_models: TinyModels, backbone: Backbone, family: str) -> None:
    model = stock.load_model(family, tiny_models.folder(family))
    for messages in chats_of(family).values():
        images = pictures(messages)
        with torch.no_grad():
            data = stock.inputs(backbone.inputs._processor, messages, images)
            states = model(**data, output_hidden_states=True).hidden_states
        (found,) = notes_of(backbone, [backbone.inputs.build(messages, images)])
        same(found, torch.cat([states[layer][0, :, :3] for layer in (1, 3)], dim=1))


def test_batches_and_chunks_read_what_a_prompt_alone_does(backbone: Backbone) -> None:
    prompts = [long_prompt(backbone, 150), prompt_of(backbone, "text"), long_prompt(backbone, 70, seed=1)]
    alone = [notes_of(backbone, [prompt])[0] for prompt in prompts]
    for found, expected in zip(notes_of(backbone, prompts), alone, strict=True):
        same(found, expected)
    rows = [backbone.open_row(prompt, 2) for prompt in prompts]
    while any(row.pending for row in rows):
        left = [row for row in rows if row.pending]
        backbone.forward(left, [backbone.chunk(row, 17) for row in left])
    for found, expected in zip(closed(backbone, rows, prompts), alone, strict=True):
        same(found, expected)


def test_a_prefix_that_is_known_keeps_what_was_read_of_it(remembering: Backbone, backbone: Backbone) -> None:
    prompt = long_prompt(remembering, 200, seed=4)
    longer = Prompt([*prompt.ids, *prompt.ids[-20:]], prompt.features, prompt.image_tokens, prompt.pictures)
    expected = [notes_of(backbone, [each])[0] for each in (prompt, prompt, longer)]
    for each, wanted in zip((prompt, prompt, longer), expected, strict=True):
        row = remembering.open_row(each, 2)
        known = row.length
        remembering.prefill([row])
        same(closed(remembering, [row], [each])[0], wanted)
    assert known >= 2 * remembering.cache.block_size


def test_copies_and_heirs_of_a_row_have_its_numbers(backbone: Backbone) -> None:
    prompt = long_prompt(backbone, 150, seed=2)
    expected = notes_of(backbone, [prompt])[0]
    source = backbone.open_row(prompt, 2)
    backbone.prefill([source])
    copy = backbone.copy_row(source, prompt)
    heir = backbone.take_over(source, prompt)
    backbone.prefill([copy, heir])
    for found in closed(backbone, [copy, heir], [prompt, prompt]):
        same(found, expected)


def test_rows_that_move_together_take_their_numbers_along(remembering: Backbone, backbone: Backbone) -> None:
    """Rows end in any order; blocks are moved, dropped and taken again."""
    prompts = [long_prompt(remembering, 90 + 30 * seed, seed=seed) for seed in range(4)]
    expected = [notes_of(backbone, [prompt])[0] for prompt in prompts]
    for gone in range(4):
        rows = [remembering.open_row(prompt, 2) for prompt in prompts]
        remembering.prefill(rows)
        remembering.close_row(rows[gone])
        rest = [place for place in range(4) if place != gone]
        for place in rest:
            rows[place].append(5)
        remembering.forward([rows[place] for place in rest], [1] * 3)
        for found, place in zip(
            closed(remembering, [rows[place] for place in rest], [prompts[place] for place in rest]), rest, strict=True
        ):
            same(found, expected[place])


def test_another_reader_finds_nothing_of_the_one_before(remembering: Backbone) -> None:
    class Third(Coordinates):
        layers = (2, 2)

    prompt = long_prompt(remembering, 150, seed=7)
    before = notes_of(remembering, [prompt])[0]
    remembering.read_prompts(Third())
    row = remembering.open_row(prompt, 2)
    assert row.length == 0
    remembering.prefill([row])
    assert not torch.allclose(closed(remembering, [row], [prompt])[0], before)


def test_tokens_that_nobody_read_have_no_numbers(backbone: Backbone) -> None:
    prompt = long_prompt(backbone, 100, seed=3)
    row = backbone.open_row(prompt, 2)
    backbone.forward([row], [backbone.chunk(row, 40)])
    done = row.length
    backbone.reserve(row, row.pending)
    notes = closed(backbone, [row], [prompt])[0]
    assert notes[:done].isfinite().all()
    assert notes[done:].isnan().all()


def test_a_reader_is_not_changed_under_open_rows(backbone: Backbone) -> None:
    row = backbone.open_row(prompt_of(backbone, "text"), 2)
    with pytest.raises(AssertionError, match="rows are open"):
        backbone.read_prompts(None)
    backbone.close_row(row)
