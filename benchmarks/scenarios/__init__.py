"""What is measured, by name."""

from __future__ import annotations

from benchmarks.bench import Scenario
from benchmarks.scenarios import (
    answer_step,
    arrivals,
    blocks,
    demo,
    fresh,
    guard,
    guard_loads,
    guard_prompt,
    guard_step,
    guard_vllm,
    offline,
    peers,
    products,
    prompts,
    quantize,
    steps,
)

SCENARIOS: dict[str, Scenario] = {
    "demo": Scenario("start, memory, and the guard's modes on the bundled model", demo.run),
    "peers-tiny": Scenario("image requests against transformers serve, 0.6 M parameters", peers.tiny),
    "peers-small": Scenario("the same, 32 M parameters", peers.small),
    "peers-real": Scenario("text requests to SmolLM2-135M against transformers serve", peers.real),
    "offline-small": Scenario("the engine against model.generate on one static batch", offline.run),
    "step-small": Scenario("an engine's step against the bare batched forward", steps.small),
    "products": Scenario("single operations: weights, int8 and attention against torch's own", products.run),
    "rows-256": Scenario("growth of a step from 8 rows to 256 against the bare forward's", steps.rows),
    "guard-small": Scenario("off, monitor and steer: throughput and latencies kept", guard.run),
    "guard-step": Scenario("the same in process, by turns", guard_step.run),
    "guard-prompt": Scenario(
        "what readers add to the first token of 64 to 4,096 tokens, in CPU time", guard_prompt.run
    ),
    "guard-vllm": Scenario("the guard on vLLM against plain vllm serve", guard_vllm.run),
    "guard-loads": Scenario("what a guard keeps of the throughput of new prompts, in CPU time", guard_loads.run),
    "answer-step": Scenario("what a reader of answers adds between tokens, in process, by turns", answer_step.run),
    "long-prompt": Scenario("running rows while a long prompt is computed", prompts.long_prompt),
    "same-image": Scenario("time to the first token of the second question about an image", prompts.same_image),
    "blocks": Scenario("nothing is left in the cache after loads and aborts", blocks.run),
    "fresh-pictures": Scenario(
        "pictures never sent before: the default max_gap_ms, and steps at most doubled", fresh.pictures
    ),
    "fresh-words": Scenario("the same with 300 words and no picture", fresh.texts),
    "fresh-pictures-48": Scenario("the same with 48 clients", fresh.more_pictures),
    "fresh-one": Scenario("the same with one client, pictures and words", fresh.one),
    "known-pictures": Scenario(
        "8 pictures and new words, 16 and 48 clients, beside other servers", fresh.known_pictures
    ),
    "open-loop": Scenario("goodput under Poisson arrivals of new prompts at shares of the capacity", arrivals.run),
    "quantize": Scenario("int8 weights against none: speed, and what they change in answers and scores", quantize.run),
}
