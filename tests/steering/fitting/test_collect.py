from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.backbone import Backbone, Row
from steering.data.questions import PictureFile, Question
from steering.fitting.collect import StateError, collect_forced, collect_states, stopping_after
from steering.fitting.offline import open_rows, prompt_of, reply
from steering.fitting.stages import Chunks
from tests.reference.states import prompt_states
from tests.tiny import TinyModels, make_tiny, picture, representatives_first

FAMILIES = ("llava_onevision", "chameleon")
PICTURES = [picture(n) for n in range(4)]


def questions(count: int, *, pictures: bool = True) -> list[Question]:
    """Texts of many lengths, some with a picture."""
    return [
        Question("Describe it. " * (1 + n % 5) + str(n), [PICTURES[n % 4]] if pictures and n % 3 == 0 else [])  #
        for n in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_padded_and_mixed_is_one_by_one(tiny_models: TinyModels, family: str, tmp_path: Path) -> None:
    backbone = tiny_models.backbone(family)
    asked = questions(20)
    layers = list(range(backbone.info.num_layers + 1))
    ticks: list[int] = []
    chunks = collect_states([backbone], asked, layers, tmp_path, ticks.append)
    alone = torch.cat([prompt_states(backbone, [each], layers) for each in asked])
    together = torch.cat(list(chunks))
    assert together.shape == (20, len(layers), backbone.info.hidden_size)
    assert (together - alone).abs().max() < 1e-5 * max(1.0, float(alone.abs().max()))
    assert torch.equal(chunks.column(2), together[:, 2])
    assert sum(ticks) == 20
    assert backbone.open_rows == 0


@pytest.mark.parametrize("family", representatives_first())
def test_stopping_early_changes_no_state(tiny_models: TinyModels, family: str) -> None:
    backbone = tiny_models.backbone(family)
    asked = questions(4, pictures=backbone.inputs.sees)
    blocks = backbone._decoder.layers
    backbone.read_prompts(None)  # of a test before it, deeper than the layers that are left
    for layer in range(backbone.info.num_layers + 1):
        with stopping_after(backbone, layer):
            early = prompt_states(backbone, asked, [layer])
        assert torch.equal(early, prompt_states(backbone, asked, [layer]))
    assert backbone._decoder.layers is blocks
    assert len(blocks) == backbone.info.num_layers


def test_blocks_after_the_needed_layer_do_not_run(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    ran: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(backbone._decoder.layers)
    ]
    with stopping_after(backbone, 1):
        prompt_states(backbone, questions(2), [1])
    for hook in hooks:
        hook.remove()
    assert set(ran) == {0, 1}


def test_an_error_leaves_rows_and_blocks_as_they_were(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    blocks = backbone._decoder.layers
    with pytest.raises(FileNotFoundError), stopping_after(backbone, 1):
        prompt_states(backbone, [Question("fine"), Question("bad", [PictureFile(Path("/nowhere.png"))])], [1])
    assert backbone.open_rows == 0
    assert backbone._decoder.layers is blocks


@pytest.mark.parametrize("family", representatives_first())
def test_teacher_forced_states_are_those_of_decoding_the_refusal(
    tiny_models: TinyModels, family: str, tmp_path: Path
) -> None:
    backbone = tiny_models.backbone(family)
    ids = [20, 31, 7, 45]
    asked = questions(5, pictures=backbone.inputs.sees)
    (forced,) = collect_forced([backbone], asked, ids, tmp_path, lambda _: None)
    assert forced.shape == (5, 4, backbone.info.hidden_size)
    for place, question in enumerate(asked):
        for length in range(len(ids)):
            with open_rows(backbone, [question], 8) as rows:
                hidden = backbone.prefill(rows)
                for token in ids[:length]:
                    hidden = backbone.decode(rows, torch.tensor([token]))
            assert (forced[place, length] - hidden[0]).abs().max() < 1e-4 * max(1.0, float(hidden.abs().max()))


def test_collecting_goes_on_where_it_was(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering.fitting.collect.CHUNK", 4)
    backbone = tiny_models.backbone("llava_onevision")
    asked, layers = questions(18), [1, 3]
    whole = torch.cat(list(collect_states([backbone], asked, layers, _made(tmp_path / "whole"), lambda _: None)))

    class KilledError(Exception):
        pass

    def killed(_: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(1)
        if len(seen) == 3:
            raise KilledError

    part = _made(tmp_path / "part")
    with pytest.raises(KilledError):
        collect_states([backbone], asked, layers, part, killed)
    before = {path.name: path.stat().st_mtime_ns for path in part.iterdir()}
    assert len(before) == 2
    damaged = next(path for path in part.iterdir() if path.name.startswith("000001"))
    damaged.write_bytes(damaged.read_bytes()[:-3])  # what a bad disk leaves is found by its hash
    again = torch.cat(list(collect_states([backbone], asked, layers, part, lambda _: None)))
    assert torch.equal(again, whole)
    kept = next(path for path in part.iterdir() if path.name.startswith("000000"))
    assert kept.stat().st_mtime_ns == before[kept.name]


def test_several_devices_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.load import load_backbone

    monkeypatch.setattr("steering.fitting.collect.CHUNK", 3)
    folder = make_tiny("llava_onevision", tmp_path / "model")
    both: list[Backbone] = [load_backbone(folder, device="cpu", dtype=torch.float32, max_rows=4) for _ in range(2)]
    asked = questions(20)
    one = torch.cat(list(collect_states(both[:1], asked, [2], _made(tmp_path / "one"), lambda _: None)))
    two = torch.cat(list(collect_states(both, asked, [2], _made(tmp_path / "two"), lambda _: None)))
    assert torch.equal(one, two)


def test_a_picture_file_is_the_picture(tiny_models: TinyModels, tmp_path: Path) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    image = picture(5)
    image.save(tmp_path / "5.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    states = [
        prompt_states(backbone, [Question("What is it?", [each])], [2])
        for each in (image, PictureFile(tmp_path / "5.png"), PictureFile(tmp_path / "alpha.png"))
    ]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert isinstance(image, Image.Image)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_columns_are_read_without_the_rest(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path)
    x = torch.randn(10, 3, 4).bfloat16()
    for number in range(5):
        chunks.put(number, {"x": x[2 * number : 2 * number + 2]})
    assert torch.equal(chunks.column(1), x[:, 1].float())
    assert torch.equal(torch.cat(list(chunks)), x)
    assert chunks.has(3)
    assert not chunks.has(5)


def test_a_state_that_is_no_number_is_named_before_it_is_kept(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_models.backbone("llava_onevision")

    def broken(*_: object) -> torch.Tensor:
        states = torch.zeros(3, 2, 4)
        states[1, 1, 2] = torch.nan
        return states

    monkeypatch.setattr("steering.fitting.collect.read_states", broken)
    asked = [Question("a"), Question("bb"), Question("ccc")]
    with pytest.raises(StateError, match="prompt 1 at layer 7") as caught:
        collect_states([backbone], asked, [5, 7], tmp_path, lambda _: None)
    assert (caught.value.place, caught.value.layer) == (1, 7)
    assert not list(tmp_path.iterdir())


def test_a_prompt_without_room_is_answered_with_what_room_there_is(tiny_models: TinyModels) -> None:
    backbone = tiny_models.backbone("llava_onevision")
    context = backbone.info.context_length
    words, tokens = "", 0
    while tokens < context - 4:
        words += " a"
        tokens = len(prompt_of(backbone, Question(words)).ids)
    assert context - 4 <= tokens <= context
    short, long = reply(backbone, [Question("a"), Question(words)], None, lambda _: [], 16)
    assert long.tokens <= context - tokens + 1
    assert not long.ended
    (alone,) = reply(backbone, [Question("a")], None, lambda _: [], 16)
    assert short.text == alone.text
    assert backbone.open_rows == 0


def test_what_prompts_of_a_batch_begin_with_is_computed_once(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_models.backbone("llama", remembers=True)
    asked = [Question("How many circles are there? " * 60 + word) for word in ("red", "blue ones", "x")]
    computed: list[int] = []
    run = backbone._passes.run

    def counted(rows: Sequence[Row], counts: Sequence[int], *more: Any) -> torch.Tensor:
        computed.append(sum(counts))
        return run(rows, counts, *more)

    monkeypatch.setattr(backbone._passes, "run", counted)

    def answers(group: Sequence[Question]) -> tuple[list[str], int]:
        backbone.forget()
        computed.clear()
        return [each.text for each in reply(backbone, group, None, lambda _: [], 4)], sum(computed)

    alone = [answers([each]) for each in asked]
    said, tokens = answers(asked)
    assert said == [text for (text,), _ in alone]
    assert tokens < 0.6 * sum(each for _, each in alone)
