"""The batched sampler against the slow one, row by row."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sampling import RowSampler, SamplingParams, sample
from tests.reference import sampling as reference

V = 24
tokens = st.lists(st.integers(0, V - 1), max_size=8)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    top_k=st.sampled_from([0, 1, 4, V, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.6, -0.5]),
    presence_penalty=st.sampled_from([0.0, 0.9, -1.0]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.sampled_from([-100.0, -1.0, 2.0, 100.0]), max_size=3),
)


def sampler_of(params: SamplingParams, prompt: list[int], output: list[int]) -> RowSampler:
    sampler = RowSampler(params, prompt)
    for token in output:
        sampler.observe(token)
    return sampler


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.tuples(params, tokens, tokens), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_each_row_of_a_batch_gets_the_slow_sampler_s_token(rows: list[Any], seed: int) -> None:
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed)) * 3
    kept = logits.clone()
    found = sample(logits, [sampler_of(*row) for row in rows])
    assert torch.equal(logits, kept), "the caller's logits were changed"
    for row, (each, prompt, output) in enumerate(rows):
        probabilities = reference.distribution(logits[row], each, prompt, output)
        number = 0.5 if each.greedy else sampler_of(each, prompt, output).draw()
        expected = reference.choose(probabilities, number)
        if found[row] != expected:  # sums in another order may differ in the last bit at a boundary
            edges = probabilities.double().cumsum(0)
            assert float((edges - number).abs().min()) < 1e-5
            assert probabilities[found[row]] > 0


@settings(max_examples=50, deadline=None)
@given(row=st.tuples(params, tokens, tokens), others=st.lists(st.tuples(params, tokens, tokens), max_size=4))
def test_a_row_s_tokens_do_not_depend_on_its_neighbours(row: Any, others: list[Any]) -> None:
    logits = torch.randn(len(others) + 1, V, generator=torch.Generator().manual_seed(1))
    alone, among = sampler_of(*row), sampler_of(*row)
    beside = [sampler_of(*other) for other in others]
    for _ in range(4):
        token = sample(logits[:1], [alone])[0]
        assert sample(logits, [among, *beside])[0] == token
        alone.observe(token)
        among.observe(token)


def test_frequencies() -> None:
    """Tokens come as often as their probabilities say: chi-square over 20,000 draws."""
    draws = 20_000
    each = SamplingParams(temperature=0.8, top_p=0.95, top_k=12, seed=5)
    logits = torch.randn(V, generator=torch.Generator().manual_seed(2))
    probabilities = reference.distribution(logits, each, [], [])
    sampler = RowSampler(each, [])
    found = torch.zeros(V)
    for _ in range(draws // 100):
        for token in sample(logits.expand(100, V), [sampler] * 100):
            found[token] += 1
    assert not found[probabilities == 0].any()
    expected = probabilities[probabilities > 0] * draws
    square = float(((found[probabilities > 0] - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    assert square < degrees + 4 * (2 * degrees) ** 0.5, f"chi-square {square:.1f} at {degrees} degrees of freedom"


def test_the_seed_fixes_the_tokens() -> None:
    logits = torch.zeros(1, 1000)

    def run(seed: int | None) -> list[int]:
        sampler = RowSampler(SamplingParams(seed=seed), [])
        return [sample(logits, [sampler])[0] for _ in range(20)]

    assert run(7) == run(7)
    assert len({tuple(run(seed)) for seed in (7, 8, None, None)}) == 4


def test_plain_greedy_rows_are_one_argmax() -> None:
    logits = torch.randn(3, V)
    with (
        mock.patch.object(torch.Tensor, "sort", side_effect=AssertionError("sorted")),
        mock.patch.object(torch.Tensor, "softmax", side_effect=AssertionError("normalised")),
    ):
        found = sample(logits, [RowSampler(SamplingParams.GREEDY, [1, 2])] * 3)
    assert found == logits.argmax(-1).tolist()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((1, V), torch.finfo(torch.float32).min)
    logits[0, 3] = logits[0, 9] = 0.0
    sampler = RowSampler(SamplingParams(temperature=5.0, seed=1, repetition_penalty=1.5), [3, 4])
    assert {sample(logits, [sampler])[0] for _ in range(50)} == {3, 9}


def test_a_bias_on_a_token_that_does_not_exist_does_nothing() -> None:
    logits = torch.randn(1, V)
    sampler = RowSampler(SamplingParams(temperature=0.0, logit_bias={V + 5: 100.0}), [V + 9])
    assert sample(logits, [sampler]) == logits.argmax(-1).tolist()


def test_half_precision() -> None:
    logits = torch.randn(2, V).bfloat16()
    samplers = [
        RowSampler(SamplingParams(seed=1), []),
        RowSampler(SamplingParams(temperature=0.0, logit_bias={4: 100}), []),
    ]
    assert sample(logits, samplers)[1] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_without_a_meaning(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
