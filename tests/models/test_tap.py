"""Layer `l` is `hidden_states[l]` of transformers: every family, every `l`, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.backbone import Backbone
from models.tap import Tap
from tests.reference import stock
from tests.tiny import CHATS, LAYERS, TinyModels, chats_of, every_family, pictures

EVERY = range(LAYERS + 1)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_layer_of_padded_rows(tiny_models: TinyModels, family: str, side: str) -> None:
    model = stock.load_model(family, tiny_models.folder(family))
    processor = tiny_models.backbone(family).inputs._processor
    named = [chats_of(family)[name] for name in ("one image", "turns", "two images")]
    chats = [(messages, pictures(messages, seed)) for seed, messages in enumerate(named)]
    data = stock.batch(processor, chats, side)
    lengths = data["attention_mask"].sum(-1)
    assert len(set(lengths.tolist())) > 1
    last = lengths - 1 if side == "right" else torch.full_like(lengths, data["input_ids"].shape[1] - 1)
    rows = torch.arange(len(chats))
    with torch.no_grad():
        expected = [states[rows, last] for states in model(**data, output_hidden_states=True).hidden_states]
        assert len(expected) == LAYERS + 1
        assert len({float(states.sum()) for states in expected}) == LAYERS + 1
        before = _hooks(model)  # those of transformers' own recording stay
        several = Tap(model.get_decoder(), list(EVERY))
        with several.at(last):
            model(**data)
        for layer in EVERY:
            single = Tap(model.get_decoder(), layer)
            with single.at(last):
                model(**data)
            assert torch.equal(single.states, expected[layer]), layer
            assert torch.equal(several.states[:, layer], expected[layer]), layer
    assert _hooks(model) == before


def test_prefill_inside_the_tap(tiny_models: TinyModels, backbone: Backbone, family: str) -> None:
    model = stock.load_model(family, tiny_models.folder(family))
    for messages in chats_of(family).values():
        images = pictures(messages)
        with torch.no_grad():
            data = stock.inputs(backbone.inputs._processor, messages, images)
            expected = [states[:, -1] for states in model(**data, output_hidden_states=True).hidden_states]
        row = backbone.open_row(backbone.inputs.build(messages, images), 1)
        with backbone.tap(list(EVERY)) as tap, backbone.tap(1) as one:
            hidden = backbone.prefill([row])
        backbone.close_row(row)
        for layer in EVERY:
            torch.testing.assert_close(tap.states[:, layer], expected[layer], atol=2e-5, rtol=0, msg=str(layer))
        assert torch.equal(one.states, tap.states[:, 1])
        assert torch.equal(tap.states[:, LAYERS], hidden)


def test_steps_inside_the_tap_read_what_a_pass_over_all_tokens_reads(backbone: Backbone) -> None:
    prompt, token = backbone.inputs.build_text("A red square."), 5
    rows = [backbone.open_row(prompt, 2) for _ in range(2)]
    backbone.prefill(rows)
    with backbone.tap(list(EVERY)) as tap, backbone.tap(1) as one:
        hidden = backbone.decode(rows, torch.tensor([token, token]))
        assert torch.equal(one.states, tap.states[:, 1])
        assert torch.equal(tap.states[:, LAYERS], hidden)
        stepped = tap.states
        rows.append(backbone.open_row(replace(prompt, ids=[*prompt.ids, token]), 1))
        backbone.prefill(rows[2:])
    for row in rows:
        backbone.close_row(row)
    torch.testing.assert_close(stepped, tap.states.expand_as(stepped), atol=2e-5, rtol=0)


class TestHooks:
    @pytest.fixture
    def family(self) -> str:
        return "llava_onevision"

    @pytest.fixture
    def decoder(self, backbone: Backbone) -> Iterator[nn.Module]:
        before = _hooks(backbone._decoder)
        yield backbone._decoder
        assert _hooks(backbone._decoder) == before

    def test_no_such_layer(self, backbone: Backbone) -> None:
        with pytest.raises(ValueError, match="layer 5 is not one of"), backbone.tap(LAYERS + 1):
            pass

    def test_removed_after_an_exception(self, decoder: nn.Module) -> None:
        tap = Tap(decoder, 2)
        with pytest.raises(RuntimeError, match="boom"), tap.at(torch.tensor([0])):
            raise RuntimeError("boom")

    def test_backbone_forgets_a_tap_after_an_exception(self, backbone: Backbone, decoder: nn.Module) -> None:
        with pytest.raises(RuntimeError, match="boom"), backbone.tap(2):
            raise RuntimeError("boom")
        assert not backbone._taps

    def test_every_pass_leaves_the_states_of_its_last_tokens(self, backbone: Backbone, decoder: nn.Module) -> None:
        row = backbone.open_row(backbone.inputs.build(CHATS["text"], []), 2)
        with backbone.tap(LAYERS) as tap:
            assert torch.equal(backbone.prefill([row]), tap.states)
            assert torch.equal(backbone.decode([row], torch.tensor([5])), tap.states)
        backbone.close_row(row)
