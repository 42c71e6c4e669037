"""The batched sampler against the slow one, row by row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.row_sampler import RowSampler, SamplingParams
from models.sampling import sample
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


@given(rows=st.lists(st.tuples(params, tokens, tokens), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_each_row_of_a_batch_gets_the_slow_sampler_s_token(rows: list[Any], seed: int) -> None:
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed)) * 3
    kept = logits.clone()
    found = sample(logits, [sampler_of(*row) for row in rows]).tokens
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
        token = sample(logits[:1], [alone]).tokens[0]
        assert sample(logits, [among, *beside]).tokens[0] == token
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
        for token in sample(logits.expand(100, V), [sampler] * 100).tokens:
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
        return [sample(logits, [sampler]).tokens[0] for _ in range(20)]

    assert run(7) == run(7)
    assert len({tuple(run(seed)) for seed in (7, 8, None, None)}) == 4


def test_plain_greedy_rows_are_one_argmax() -> None:
    logits = torch.randn(3, V)
    with (
        mock.patch.object(torch.Tensor, "sort", side_effect=AssertionError("sorted")),
        mock.patch.object(torch.Tensor, "softmax", side_effect=AssertionError("normalised")),
    ):
        found = sample(logits, [RowSampler(SamplingParams.GREEDY, [1, 2])] * 3).tokens
    assert found == logits.argmax(-1).tolist()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((1, V), torch.finfo(torch.float32).min)
    logits[0, 3] = logits[0, 9] = 0.0
    sampler = RowSampler(SamplingParams(temperature=5.0, seed=1, repetition_penalty=1.5), [3, 4])
    assert {sample(logits, [sampler]).tokens[0] for _ in range(50)} == {3, 9}


def test_a_bias_on_a_token_that_does_not_exist_does_nothing() -> None:
    logits = torch.randn(1, V)
    sampler = RowSampler(SamplingParams(temperature=0.0, logit_bias={V + 5: 100.0}), [V + 9])
    assert sample(logits, [sampler]).tokens == logits.argmax(-1).tolist()


def test_half_precision() -> None:
    logits = torch.randn(2, V).bfloat16()
    samplers = [
        RowSampler(SamplingParams(seed=1), []),
        RowSampler(SamplingParams(temperature=0.0, logit_bias={4: 100}), []),
    ]
    assert sample(logits, samplers).tokens[1] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_without_a_meaning(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.4e-45, 5e-324, 1e-39, 1e-6])
def test_a_temperature_that_is_nearly_zero_is_zero(temperature: float) -> None:
    logits = torch.randn(1, V) * 100
    found = sample(logits, [RowSampler(SamplingParams(temperature=temperature, logprobs=5), [])])
    assert found == sample(logits, [RowSampler(SamplingParams(temperature=0.0, logprobs=5), [])])
    assert all(math.isfinite(log) for log in (found.logprobs[0].token, *(log for _, log in found.logprobs[0].top)))


def test_a_top_p_of_zero_leaves_the_likeliest() -> None:
    logits = torch.randn(1, V)
    found = {sample(logits, [RowSampler(SamplingParams(top_p=0.0), [])]).tokens[0] for _ in range(20)}
    assert found == {int(logits.argmax())}


def test_no_token_that_ends_the_answer_comes_before_so_many_others() -> None:
    logits = torch.zeros(1, V)
    logits[0, 3] = logits[0, 4] = 50.0
    sampler = RowSampler(SamplingParams(min_tokens=2, logit_bias={3: 100.0}), [], ends={3, 4})
    said: list[int] = []
    for _ in range(3):
        said += sample(logits, [sampler]).tokens
        sampler.observe(said[-1])
    assert not {3, 4} & {*said[:2]}
    assert said[2] == 3


# log-probabilities -------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(params, tokens, tokens, st.sampled_from([None, 0, 1, 5, 20])), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_log_probabilities_are_those_of_the_distribution_that_is_drawn_from(rows: list[Any], seed: int) -> None:
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed)) * 3
    samplers = [sampler_of(replace(each, logprobs=count), prompt, output) for each, prompt, output, count in rows]
    plain = [sampler_of(each, prompt, output) for each, prompt, output, _ in rows]
    found = sample(logits, samplers)
    assert found.tokens == sample(logits, plain).tokens  # asking changes nothing
    assert found.logprobs.keys() == {row for row, (*_, count) in enumerate(rows) if count is not None}
    for row, logprobs in found.logprobs.items():
        each, prompt, output, count = rows[row]
        # A greedy row's are those before the likeliest token is taken.
        drawn = replace(each, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) if each.greedy else each
        probabilities = reference.distribution(logits[row], drawn, prompt, output)
        assert math.exp(logprobs.token) == pytest.approx(float(probabilities[found.tokens[row]]), abs=1e-5)
        assert len(logprobs.top) == min(count, int((probabilities > 0).sum()))
        assert [log for _, log in logprobs.top] == sorted((log for _, log in logprobs.top), reverse=True)
        for token, log in logprobs.top:
            assert math.exp(log) == pytest.approx(float(probabilities[token]), abs=1e-5)
        rest = probabilities.clone()
        rest[[token for token, _ in logprobs.top]] = 0
        assert not logprobs.top or float(rest.max()) <= math.exp(logprobs.top[-1][1]) + 1e-5


class Only:
    """A grammar that allows the same few tokens all the time."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allowed(self) -> bytes:
        bits = sum(1 << token for token in self.tokens)
        return bits.to_bytes(4, "little")  # 32 bits for a vocabulary of 24, as grammars round up

    def accept(self, token: int) -> None:
        assert token in self.tokens

    def finish(self) -> None:
        pass


@given(rows=st.lists(st.tuples(params, st.sets(st.integers(0, V - 1), max_size=4)), min_size=1, max_size=6))
def test_constrained_rows_say_what_their_grammar_allows_and_the_others_what_they_would_say_alone(
    rows: list[Any],
) -> None:
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    samplers = [
        RowSampler(replace(each, logprobs=20), [], Only(*allowed) if allowed else None) for each, allowed in rows
    ]
    found = sample(logits, samplers)
    assert torch.equal(logits, kept)
    for row, (each, allowed) in enumerate(rows):
        if allowed:
            assert found.tokens[row] in allowed
            assert {token for token, _ in found.logprobs[row].top} <= allowed
            assert sum(math.exp(log) for _, log in found.logprobs[row].top) == pytest.approx(1, abs=1e-4)
        else:
            assert found.tokens[row] == sample(logits[row : row + 1], [RowSampler(each, [])]).tokens[0]


def test_a_steered_row_is_greedy_without_a_grammar_and_still_reports() -> None:
    sampler = RowSampler(SamplingParams(seed=1, logit_bias={3: 100.0}, logprobs=2), [], Only(3)).steered()
    logits = torch.zeros(1, V)
    logits[0, 7] = 5.0
    found = sample(logits, [sampler])
    assert found.tokens == [7]
    assert found.logprobs[0].top[0][0] == 7
