"""What a sampling step costs with log-probabilities and with grammars, as ratios to the same step without.

Run: python -m benchmarks.sampling
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from models.demo import CHECKPOINT
from models.grammar import GrammarCompiler, JsonGrammar
from models.row_sampler import RowSampler, SamplingParams
from models.sampling import sample

ROWS = 16
STEPS = 60
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}


def rows(*, logprobs: int | None = None, grammar: JsonGrammar | None = None, constrained: int = 0) -> list[RowSampler]:
    """Sixteen rows that sample, the first of them constrained."""
    params = SamplingParams(seed=1, logprobs=logprobs)
    return [
        RowSampler(params, [], grammar.fresh() if grammar is not None and row < constrained else None)
        for row in range(ROWS)
    ]


def seconds(samplers: Sequence[RowSampler], vocabulary: int) -> float:
    """Median time of a step over random logits."""
    logits = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(0))
    times: list[float] = []
    for _ in range(STEPS):
        before = time.perf_counter()
        sample(logits, samplers)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(CHECKPOINT))
    vocabulary = len(tokenizer)
    compiler = GrammarCompiler(tokenizer, vocabulary, {tokenizer.eos_token_id})
    grammar = compiler.compile(SCHEMA)
    before = time.perf_counter()
    compiler.compile(SCHEMA)
    compiled = time.perf_counter() - before
    plain = seconds(rows(), vocabulary)
    cases = {
        "log-probabilities and 5 likeliest, all rows": rows(logprobs=5),
        "1 of 16 rows constrained": rows(grammar=grammar, constrained=1),
        "16 of 16 rows constrained": rows(grammar=grammar, constrained=ROWS),
    }
    print(f"a step of {ROWS} sampled rows over {vocabulary} tokens: {plain * 1e3:.3f} ms")
    for name, samplers in cases.items():
        print(f"{name}: {seconds(samplers, vocabulary) / plain:.2f} x")
    print(f"compiling a small schema: {compiled * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
