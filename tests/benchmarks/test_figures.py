"""What the benchmark computes by itself: statistics, tables, costs, and models whose answers do not end early."""

from __future__ import annotations

import random
from statistics import median

import pytest
import torch
import transformers

from benchmarks.checkpoints import _SPECIAL, SMALL, TINY, Shape, config, make_tokenizer
from benchmarks.estimate import Estimate, percentile
from benchmarks.report import Goal, Report, table
from benchmarks.roofline import Costs, Machine
from benchmarks.siege.observer import Stops, percentile_of_moments
from benchmarks.workloads import WORKLOADS, about_images, long_prompts


def test_an_estimate_is_the_median_within_its_interval() -> None:
    chance = random.Random(0)
    values = [chance.gauss(1.0, 0.05) for _ in range(40)]
    found = Estimate.of(values)
    assert found.value == pytest.approx(median(values))
    assert found.low < found.value < found.high
    assert found == Estimate.of(values)
    assert (found.high - found.low) < (Estimate.of(values[:10]).high - Estimate.of(values[:10]).low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance = random.Random(1)
    held = 0
    for _ in range(100):
        found = Estimate.of([chance.gauss(2.0, 1.0) for _ in range(25)])
        held += found.low <= 2.0 <= found.high
    assert held >= 88


def test_a_stop_counts_for_every_moment_of_it() -> None:
    assert percentile_of_moments([0.0] * 90 + [0.020], 100) == pytest.approx(0.020)
    assert percentile_of_moments([0.0] * 90 + [0.020], 95) == pytest.approx(0.010, abs=0.001)


def test_a_stop_is_not_what_the_loop_waited_for_a_core_nor_more_than_was_computed() -> None:
    stops = Stops()
    for beat in ((0.102, 0.0, 0.200), (0.102, 0.060, 0.200), (0.102, 0.0, 0.030), (0.001, 0.0, 0.001)):
        stops.add(beat)
    assert stops.late == pytest.approx([0.1, 0.1, 0.1, 0.0])
    assert stops.own == pytest.approx([0.1, 0.04, 0.03, 0.0])


def test_one_value_is_its_own_interval() -> None:
    assert Estimate.of([3.0]) == Estimate(3.0, 3.0, 3.0, 1)
    assert Estimate.of_ratios([2.0, 6.0, 9.0], [1.0, 2.0, 3.0]).value == 3.0


def test_percentiles() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile(list(map(float, range(101))), 99) == 99.0


def test_goals_say_whether_they_are_kept() -> None:
    found = Estimate.of([1.1])
    assert Goal("a", found, at_least=1.0).kept is True
    assert Goal("a", found, at_most=1.0).kept is False
    assert Goal("a", found).kept is None
    spread = Estimate(0.995, 0.98, 1.01, 9)
    assert [Goal("a", spread, at_least=bound).verdict for bound in (0.9, 0.99, 1.0)] == [
        "yes",
        "yes, unsure",
        "NO, unsure",
    ]
    report = Report("x", "y", ("a", "b"), [("1", "2")], [Goal("g", found, at_most=1.0)], ["note"])
    assert "| 1 | 2 |" in report.markdown()
    assert "NO" in report.markdown()
    assert report.json()["goals"][0]["kept"] is False


def test_a_table_is_in_line() -> None:
    assert table(("a", "long"), [("wider", "b")]).splitlines() == [
        "| a     | long |",
        "|-------|------|",
        "| wider | b    |",
    ]


@pytest.mark.parametrize("shape", [TINY, SMALL])
def test_costs_count_the_models_own_parameters(shape: Shape) -> None:
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config(shape, make_tokenizer(shape.vocabulary)))
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters() if p.dim() > 1)
    costs = Costs(shape, width=2)
    assert costs.decoder_weights == layers
    assert costs.head_weights == model.get_output_embeddings().weight.numel()
    assert costs.decode(1, 0).bytes == 2 * (layers + costs.head_weights)
    assert costs.decode(16, 100).bytes - costs.decode(16, 0).bytes == 2 * 1600 * costs.cached
    assert Machine(bandwidth=1e9, rate=1e15).seconds(costs.decode(1, 0)) == costs.decode(1, 0).bytes / 1e9


@pytest.mark.parametrize("size", [TINY.vocabulary, SMALL.vocabulary])
def test_every_token_is_printable_text(size: int) -> None:
    tokenizer = make_tokenizer(size)
    assert len(tokenizer) == size
    texts = [tokenizer.decode([token]) for token in range(len(_SPECIAL), size)]
    assert all(text and text.isascii() for text in texts)
    assert not any(tokenizer.decode([token], skip_special_tokens=True) for token in range(len(_SPECIAL)))
    assert tokenizer.decode(tokenizer.encode("Which shape is red?\nThis one.")) == "Which shape is red?\nThis one."


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_of_their_seed(name: str) -> None:
    make = WORKLOADS[name]
    assert make(6, max_tokens=8) == make(6, max_tokens=8)
    assert make(6, max_tokens=8) != make(6, max_tokens=8, seed=1)
    assert len(make(6, max_tokens=8)) == 6


def test_pictures_are_as_different_as_asked() -> None:
    def urls(count: int, distinct: int) -> list[str]:
        bodies = about_images(count, max_tokens=1, distinct=distinct)
        return [body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies]

    assert len(set(urls(12, 4))) == 4
    assert len(set(urls(12, 12))) == 12


def test_long_prompts_are_as_long_as_asked_and_begin_differently() -> None:
    bodies = long_prompts(3, lambda text: len(text.split()), 500, max_tokens=1, seed=0)
    texts = [body["messages"][0]["content"][0]["text"] for body in bodies]
    assert all(len(text.split()) == 500 for text in texts)
    assert len({text[:40] for text in texts}) == 3
