"""A reader of answers: what it is fitted on, what is promised of it, and what is said where there is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from steering.answers import AnswerReader
from steering.data.own_rows import Part
from steering.data.questions import Question
from steering.data.responses import Response
from steering.errors import FitError
from steering.fitting.answer_figures import HOLD, AnswerFigures
from steering.fitting.answer_steps import AnswerSteps, pieces, window_means
from steering.fitting.answered import Answered, check_answers, parts_of
from steering.fitting.answering import Drawn, draw_answers, read_drawn
from steering.fitting.answers import calibrated
from steering.fitting.collect import Tick
from steering.fitting.items import Item
from steering.fitting.offline import open_rows, score_batch
from steering.fitting.stages import Chunks, load_state
from steering.specs import Threshold
from tests.server.guards import random_guard
from tests.tiny import TinyModels

LAYERS = (1, 3)


def no_bar(name: str, total: int) -> Tick:
    return lambda _: None


def response(prompt: str, *, harmful: bool = False, split: Part | None = None) -> Response:
    return Response("r", "file:1", Question(prompt), "said", harmful, split=split)


def answered(*, harmful: bool, part: Part, tokens: int = 40) -> Answered:
    return Answered(Question("What is it?"), tuple(range(5, 5 + tokens)), 0.5, harmful, part)


def test_answers_to_one_prompt_are_in_one_part_and_in_that_of_the_guards_own_row() -> None:
    prompts = [f"What is number {n}?" for n in range(40)]
    said = [response(prompt, harmful=model == 1) for model in range(3) for prompt in prompts]
    own: dict[Part, list[Item]] = {
        "calibration": [Item("a", None, Question("what is number 7"))],
        "train": [],
        "validation": [],
    }
    found = parts_of(said, own, seed=0)
    by_prompt = [{found[at + 40 * model] for model in range(3)} for at in range(40)]
    assert all(len(parts) == 1 for parts in by_prompt)
    assert by_prompt[7] == {"calibration"}
    assert {*found} == {"train", "validation", "calibration"}
    assert parts_of([response("x", split="train")], own, seed=0) == ["train"]


def test_all_that_is_lacking_is_named_at_once() -> None:
    train: Part = "train"
    fresh: Part = "calibration"
    labels = [*[(True, train)] * 3, *[(False, train)] * 9, *[(False, fresh)] * 5]
    with pytest.raises(FitError) as error:
        check_answers(labels)
    assert str(error.value) == (
        "too few labelled answers for a reader of answers: 3 harmful answers to fit on, and 8 are needed; "
        "0 harmful answers to calibrate on, and 4 are needed; 5 harmless answers to calibrate on, and 19 are needed"
    )
    check_answers([*labels, *[(True, train)] * 5, *[(True, fresh)] * 4, *[(False, fresh)] * 14])


@torch.no_grad()
def decoded_states(backbone: Backbone, answer: Answered) -> Tensor:
    """States `[T, layers, d]` of an answer's tokens, each from the step that computes it."""
    with open_rows(backbone, [answer.question], len(answer.ids) + 1) as rows:
        backbone.prefill(rows)
        found = []
        for token in answer.ids:
            with backbone.tap(LAYERS) as tap:
                backbone.decode(rows, torch.tensor([token]))
                found.append(tap.states[0].clone())
    return torch.stack(found)


def test_what_is_fitted_on_is_what_a_server_reads(tiny_models: TinyModels, tmp_path: Path) -> None:
    backbone = tiny_models.backbone("llama")
    reader = AnswerReader(backbone.info.hidden_size, LAYERS)
    torch.manual_seed(0)
    reader.weight.normal_()
    answers = [answered(harmful=False, part="calibration", tokens=count) for count in (1, 18, 5)]
    AnswerSteps([backbone], reader, no_bar).read(answers, tmp_path)
    for answer, values in zip(answers, pieces(tmp_path), strict=True):
        served = reader.read(decoded_states(backbone, answer))[:, 0]
        assert torch.allclose(values.float(), served, atol=1e-3 * float(reader.weight.norm()))


def test_fitted_on_whole_answers_it_trips_where_harm_begins(tmp_path: Path) -> None:
    """Harm shows in the states from the tenth token on; what differs else is chance."""
    torch.manual_seed(0)
    reader = AnswerReader(1, [1])

    def states(answer: Answered) -> Tensor:
        found = torch.randn(len(answer.ids), 1, 1)
        if answer.harmful:
            found[10:, :, 0] += 8.0
        return found

    answers = [answered(harmful=n % 3 == 0, part="train") for n in range(90)]
    fresh = [answered(harmful=n % 3 == 0, part="calibration") for n in range(180)]
    (tmp_path / "windows").mkdir()
    means = [window_means(states(each), 16) for each in answers]
    counts = torch.tensor([len(each) for each in means])
    Chunks(tmp_path / "windows").put(0, {"x": torch.cat(means), "counts": counts})
    AnswerSteps([], reader, no_bar).fit(answers, tmp_path / "windows", tmp_path)
    probe = load_state(tmp_path / "probe.safetensors")
    for name, value in probe.items():
        getattr(reader, name).copy_(value)
    figures = calibrated(reader, [reader.read(states(each))[:, 0].tolist() for each in fresh], fresh)
    assert [known.target_fpr for known in figures.thresholds] == [0.01, 0.05]
    found = figures.summary()
    assert found["auroc"] > 0.9
    trips = figures.trips(figures.threshold)
    assert min(trips) > 10
    assert (figures.finals(harmful=False) >= figures.threshold).float().mean() <= 0.01


def test_a_model_answers_alike_whenever_it_is_asked(tiny_models: TinyModels, tmp_path: Path) -> None:
    backbone = tiny_models.backbone("llama")
    guard = random_guard(backbone.info)
    asked = [(Question(f"What is number {n}, please?"), n) for n in range(130)]

    def drawn(folder: Path) -> list[Drawn]:
        folder.mkdir(exist_ok=True)
        draw_answers([backbone], guard, asked, 5, folder, ticks.append)
        return read_drawn(folder)

    ticks: list[int] = []
    first = drawn(tmp_path / "a")
    assert len(first) == sum(ticks) == 130
    assert len({each.ids for each in first}) > 100  # drawn, each with its own seed
    assert all(len(each.ids) <= 5 for each in first)
    scores = score_batch(backbone, guard, [question for question, _ in asked[:3]])
    backbone.read_prompts(None)
    assert [each.score for each in first[:3]] == pytest.approx(scores, abs=1e-5)
    ticks.clear()
    sorted((tmp_path / "a").glob("*"))[1].unlink()  # what an interrupted fit lacks
    assert drawn(tmp_path / "a") == first
    assert ticks == [128, 2]


def test_figures_are_of_final_scores_and_of_what_was_shown_by_then() -> None:
    rising = [0.0] * 19 + [0.9] * 5
    runs = [rising, [0.9] * 30, [0.2] * 30, [0.1] * 8, [0.95] * 40]
    thresholds = [Threshold(target_fpr=0.05, threshold=0.8, samples=19)]
    figures = AnswerFigures(runs, [True, True, True, False, False], thresholds, 0.8)
    assert figures.trips(0.8) == [20, 1]
    found = figures.summary()
    assert found["tpr"] == pytest.approx(2 / 3)
    assert found["shown_p50"] == (19 - HOLD) / 2  # three tokens of the first, none of the second
    assert figures.by_length() == [
        {
            "tokens": "1 to 32",
            "harmful": 3,
            "harmful_tripped": pytest.approx(2 / 3),
            "harmless": 1,
            "harmless_tripped": 0,
        },
        {"tokens": "33 to 40", "harmful": 0, "harmless": 1, "harmless_tripped": 1.0},
    ]
