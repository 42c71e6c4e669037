"""Training data is what the processor makes, and training resumes to the identical state."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.demo import around, corpus, samples
from models.demo.phrases import Split
from models.demo.processor import PATCH, VIEW_TOKENS, DemoProcessor, make_processor, train_tokenizer
from models.demo.train import Recipe, dialogue_stage, rate_at, surround, train
from models.demo.world import SIZE, Sign, stream

NANO = Recipe(
    vocab=400,
    hidden=32,
    layers=1,
    heads=2,
    kv_heads=1,
    mlp=32,
    tower_hidden=32,
    tower_layers=1,
    tower_steps=2,
    align_steps=2,
    tower_batch=2,
    quiz_steps=2,
    quiz_batch=2,
    steps=2,
    polish_steps=2,
    widen_steps=5,
    widen_until=2,
    surround_steps=5,
    surround_until=2,
    batch=2,
    chunk=2,
    texts=50,
    threads=1,
    save_every=2,
)


@pytest.fixture(scope="module")
def processor() -> DemoProcessor:
    return make_processor(train_tokenizer(samples.texts(0, 200), 500))


SAMPLES = {
    "native": samples.conversation,
    "resized": partial(samples.conversation, native=0.0),
    "wide": samples.widened,
    "last": around.amid,
}


@pytest.mark.parametrize("sampled", SAMPLES.values(), ids=SAMPLES)
def test_rows_are_what_the_processor_makes(
    processor: DemoProcessor, sampled: Callable[[random.Random], samples.Conversation]
) -> None:
    encoder = corpus.Encoder(processor)
    for i in range(40):
        sample = sampled(stream("rows", i))
        images = sample.images
        text = processor.apply_chat_template(sample.messages(), tokenize=False)
        assert text == corpus.render(sample)
        expected = processor(text=text, images=[images] if len(images) > 1 else images or None, return_tensors="pt")
        row = encoder.row(sample)
        assert row.ids.tolist() == expected["input_ids"][0].tolist()
        if images:
            assert torch.equal(torch.stack(row.pixels), expected["pixel_values"])
            assert row.sizes == [tuple(size) for size in expected["image_sizes"].tolist()]


def test_only_the_assistant_is_learnt(processor: DemoProcessor) -> None:
    encoder = corpus.Encoder(processor)
    for i in range(20):
        sample = samples.conversation(stream("learn", i))
        row = encoder.row(sample)
        said = processor.tokenizer.decode(row.ids[row.learn])
        assert said == "".join(turn.said.answer + "<|im_end|>" for turn in sample.turns)


def test_a_begun_answer_is_not_learnt(processor: DemoProcessor) -> None:
    encoder = corpus.Encoder(processor)
    gone_on = [sample for i in range(100) if (sample := around.amid(stream("begun", i))) and not_learnt(sample)]
    assert gone_on
    for sample in gone_on:
        row = encoder.row(sample)
        said = processor.tokenizer.decode(row.ids[row.learn])
        assert said == "".join(turn.said.answer + "<|im_end|>" for turn in sample.turns if turn.learnt)
        (at,) = not_learnt(sample)
        assert sample.turns[at + 1].learnt


def not_learnt(sample: samples.Conversation) -> list[int]:
    return [at for at, turn in enumerate(sample.turns) if not turn.learnt]


def test_plain_words_of_a_split_are_no_other_split_s() -> None:
    def sentences(split: Split) -> set[str]:
        said = around.plain(stream("plain words", split), split, 20_000)
        return set(re.findall(r"[^.!]+[.!]", said))

    trained, tested = sentences("train"), sentences("test")
    assert len(trained) > 1000
    assert not trained & tested


def test_tokens_of_a_picture(processor: DemoProcessor) -> None:
    assert VIEW_TOKENS == (SIZE // PATCH) ** 2 == 36
    assert processor._get_number_of_features(SIZE, SIZE, SIZE, SIZE) == 36 + 36 + 6  # base, tile, a newline per row


def test_any_text_can_be_represented(processor: DemoProcessor) -> None:
    for text in ("naïve café", "日本語 🙂", "\x00\t{}[]<|", "MAKE A BOMB"):
        assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_template_takes_strings_parts_systems_and_several_images(processor: DemoProcessor) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>a<image><|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("sampled", [samples.conversation, samples.widened, around.amid])
def test_training_is_on_training_phrasings_only(sampled: Callable[[random.Random], samples.Conversation]) -> None:
    """No question of the test split is asked in training, whatever its slots hold."""
    from models.demo.dialogue import utility

    trained = {turn.said.question for i in range(1500) for turn in sampled(stream("leak", i)).turns}
    tested = {e.question for e in utility(1500, 0, "test")}
    assert not trained & tested


def test_dense_labels_lie_on_their_patches() -> None:
    for i in range(20):
        picture = corpus.dense_picture(stream("dense", i))
        labels = corpus.dense_labels(picture)
        assert ((labels[0] > 0) == (labels[1] > 0)).all()
        assert labels[3].flatten().tolist() == list(range(1, 37))
        if isinstance(picture, Sign):
            assert labels[:2].sum() == 0
            read = ["".join(chr(64 + int(c)) for c in labels[2, 2 * line] if c) for line in range(3)]
            assert tuple(read) == picture.lines
        else:
            assert (labels[0] > 0).sum() == 4 * sum(g.count for g in picture.groups)


def test_rate_warms_up_and_falls() -> None:
    rates = [rate_at(step, 1000, 1.0) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "surround.pt", weights_only=True)["module"]
    return state


def test_resumes_to_the_identical_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two saved states, in the last stage; run again; equal to a run that nobody disturbed."""
    threads = torch.get_num_threads()
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    train(NANO, calm)
    with monkeypatch.context() as patch:
        patch.setattr("models.demo.train.dialogue_stage", dies_at(3))
        with pytest.raises(KeyboardInterrupt):
            train(NANO, killed)
    assert torch.load(killed / "surround.pt", weights_only=True)["step"] == 2
    train(NANO, killed)
    torch.set_num_threads(threads)
    one, two = weights(calm), weights(killed)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (killed / "checkpoint" / "model.safetensors").read_bytes() == (
        calm / "checkpoint" / "model.safetensors"
    ).read_bytes()

    # The last stage again, on the finished checkpoint: the tower stays, what talks has learnt.
    (tmp_path / "again").mkdir()
    surround(NANO, tmp_path / "again", calm / "checkpoint")
    torch.set_num_threads(threads)
    before, after = (load_file(tmp_path / of / "checkpoint" / "model.safetensors") for of in ("calm", "again"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed
    assert not any("vision_tower" in name for name in changed)


def dies_at(fatal: int):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """`dialogue_stage` whose last stage is interrupted at a step."""

    def made(name, *args):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        stage = dialogue_stage(name, *args)
        loss = stage.loss

        def dying(step: int) -> tuple[torch.Tensor, str]:
            if name == "surround" and step == fatal:
                raise KeyboardInterrupt
            return loss(step)

        stage.loss = dying
        return stage

    return made


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "recipe.json").write_text('{"seed": 5}')
    with pytest.raises(AssertionError, match="another recipe"):
        train(replace(NANO, seed=6), tmp_path)
