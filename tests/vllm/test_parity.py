"""The guard on vLLM against our own engine: the same scores, decisions and greedy answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from models.demo.dialogue import pairs
from models.schema import source_of
from server.request import Ask, Event, Finish, GrammarFailed, Schema
from steering.policy import Mode, OutputPolicy, Verdict
from tests.tiny import TINY
from tests.vllm.models import (
    TOKENS,
    Pair,
    ask,
    decision,
    demo_pair,
    end,
    many_prompts,
    policy,
    preempt,
    put,
    served,
    tiny_pair,
    tokens,
    until_idle,
)

pytestmark = pytest.mark.vllm
CLOSE = 1e-4
FAMILIES = (
    "gemma3_text",
    "idefics3",
    "internvl",
    "llama",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3",
    "qwen3_vl",
    "smolvlm",
)
ON_TWO_RANKS = ("gemma3_text", "llama", "llava_onevision", "qwen2_vl")
TWO_RANKS = "two ranks: "
TWINS = 63  # of each of four kinds: 504 prompts


@pytest.fixture(scope="module")
def demo() -> Pair:
    return demo_pair()


@pytest.fixture(scope="module", params=["demo", *FAMILIES, *[TWO_RANKS + name for name in ON_TWO_RANKS]])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from vllm import ModelRegistry

    unguarded = dict(ModelRegistry.models)
    family = request.param.removeprefix(TWO_RANKS)
    ranks = 1 if family == request.param else 2
    if family == "demo":
        made = request.getfixturevalue("demo")
    else:
        made = tiny_pair(family, tmp_path_factory.mktemp(family), ranks)
    yield made
    if ranks > 1:
        end(made)
    ModelRegistry.models.update(unguarded)  # Llama is in Llavas too, where it has no guard of its own


POLICIES = {
    "off": policy(Mode.OFF),
    "passed": policy(Mode.STEER, threshold=1.0),
    "monitored": policy(Mode.MONITOR),
    "steered": policy(Mode.STEER),
    "blocked": policy(Mode.BLOCK),
    "watched": policy(Mode.MONITOR, output=OutputPolicy(Mode.MONITOR, 0.5)),
    "answer steered": policy(Mode.STEER, threshold=1.0, output=OutputPolicy(Mode.STEER, 0.5, "all")),
    "answer blocked": policy(Mode.STEER, threshold=1.0, output=OutputPolicy(Mode.BLOCK, 0.5, 16)),
}


def mixed(pair: Pair) -> list[Ask]:
    """Every prompt under every policy, flagged and not."""
    return [
        ask(f"{prompt}/{name}", pair.prompts[prompt], each, scores=each.output.mode is Mode.MONITOR)
        for prompt in pair.prompts
        for name, each in POLICIES.items()
    ]


def alike(ours: dict[str, list[Event]], theirs: dict[str, list[Event]]) -> float:
    """The largest difference of a score; everything else is the same."""
    assert ours.keys() == theirs.keys()
    scores: list[tuple[float | None, float | None]] = []
    for name, expected in ours.items():
        found = theirs[name]
        assert [(event.token, event.finish) for event in found] == [
            (event.token, event.finish) for event in expected
        ], name
        one, other = expected[-1].request, found[-1].request
        assert one.decision is not None
        assert other.decision is not None
        assert (one.decision.verdict, one.decision.eps) == (other.decision.verdict, other.decision.eps), name
        scores.append((one.decision.score, other.decision.score))
        if one.answer is not None:
            assert other.answer is not None
            assert replace(one.answer, score=0.0) == replace(other.answer, score=0.0), name
            scores.append((one.answer.score, other.answer.score))
        scores += zip(one.answer_scores, other.answer_scores, strict=True)
        if one.token_scores is not None:
            assert other.token_scores is not None
            assert one.token_scores[1:] == other.token_scores[1:], name
            scores += zip(one.token_scores.scores, other.token_scores.scores, strict=True)
    both = [(one, other) for one, other in scores if one is not None and other is not None]
    assert len(both) == len([one for one, _ in scores if one is not None])
    return max(abs(one - other) for one, other in both)


# Before those of two ranks: their end takes what vLLM keeps in this process.


def test_values_that_vllm_does_not_take_are_said_otherwise_or_fail_their_request_alone(demo: Pair) -> None:
    prompt, of = demo.prompts["long"], policy(Mode.STEER, threshold=1.0)
    asks = [
        ask("likeliest", prompt, of, temperature=1.0, top_p=0.0),
        ask("hot", prompt, of, temperature=3.0),
        ask("greedy", prompt, of),
    ]
    told = served(demo.vllm, asks)
    assert tokens(told["likeliest"]) == tokens(told["greedy"])
    assert [event.finish for event in told["hot"]] == [Finish.ERROR]
    assert "temperature" in str(told["hot"][-1].error)


def test_no_verdict_differs_over_the_demo_worlds_twins(demo: Pair) -> None:
    """Harmful prompts of every kind and their harmless twins, most with a picture."""
    asks = [
        replace(ask(example.id, demo.prompt(example.question, example.image), policy(Mode.STEER, 0.5)), max_tokens=0)
        for twins in pairs(TWINS, seed=918, split="test")
        for example in (twins.safe, twins.toxic)
    ]
    ours, theirs = served(demo.own, asks), served(demo.vllm, asks)
    differences = []
    for each in asks:
        one, other = decision(ours[each.id]), decision(theirs[each.id])
        assert one.verdict is other.verdict, each.id
        assert one.score is not None
        assert other.score is not None
        differences.append(abs(one.score - other.score))
    flagged = sum(decision(events).flagged for events in theirs.values())
    assert 0.4 < flagged / len(asks) < 0.6
    assert max(differences) <= CLOSE
    print(f"{len(asks)} prompts, {flagged} flagged, largest difference of a score {max(differences):.2e}")


def test_scores_and_greedy_answers_of_a_mixed_batch_are_those_of_our_own_engine(pair: Pair) -> None:
    """Prompts in chunks among them, with and without images, steered and not, watched and not, side by side."""
    asks = mixed(pair)
    ours, theirs = served(pair.own, asks), served(pair.vllm, asks)
    worst = alike(ours, theirs)
    assert worst <= CLOSE
    assert {decision(events).verdict for events in theirs.values()} == {*Verdict}
    changed = [name for name in pair.prompts if tokens(theirs[f"{name}/steered"]) != tokens(theirs[f"{name}/passed"])]
    assert changed
    answers = [events[-1].request.answer for events in theirs.values()]
    became = Counter(answer.verdict.value for answer in answers if answer is not None)
    print(f"{len(asks)} requests, {dict(became)} answers, largest difference of a score {worst:.2e}")


def test_a_prefix_hit_has_the_score_and_answer_of_the_first_time(pair: Pair) -> None:
    asks = [ask("again", pair.prompts["long"], policy(Mode.STEER, threshold=1.0))]
    first, second = served(pair.vllm, asks), served(pair.vllm, asks)
    cached = second["again"][-1].request.cached_tokens
    assert cached is not None
    assert cached >= 128
    assert tokens(second["again"]) == tokens(first["again"])
    assert decision(second["again"]).score == pytest.approx(decision(first["again"]).score, abs=CLOSE)


def test_of_a_prefix_that_was_an_answer_is_known_what_was_read_of_it(pair: Pair) -> None:
    """A block of vLLM's cache ends within the answer, and the next turn goes on from there."""
    whole = pair.prompts["long"]
    begun = replace(whole, ids=(whole.ids * 3)[: 2 * 128 - 6])
    said = tokens(served(pair.vllm, [ask("one", begun, policy(Mode.OFF), min_tokens=TOKENS)])["one"])
    after = replace(whole, ids=[*begun.ids, *said, *whole.ids[-30:]])
    asks = [ask("two", after, policy(Mode.STEER, threshold=1.0), scores=True)]
    theirs = served(pair.vllm, asks)
    # A block that the windows of Gemma's layers and its others have in common ends earlier.
    windows = pair.own.backbone.info.family.startswith("gemma3")
    assert theirs["two"][-1].request.cached_tokens == (128 if windows else 256)
    assert alike(served(pair.own, asks), theirs) <= CLOSE


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_rows_that_are_given_up_and_computed_again_are_read_as_they_were(pair: Pair, steps: int) -> None:
    """With their blocks: within a prompt, and within an answer that is watched."""
    names = ["passed", "steered", "watched", "answer blocked"]
    asks = [ask(name, pair.prompts["long"], POLICIES[name]) for name in names]
    expected = served(pair.own, asks)
    put(pair.vllm, *asks)
    told: dict[str, list[Event]] = {name: [] for name in names}
    for _ in range(steps):
        for event in pair.vllm.step():
            told[event.request.id].append(event)
    preempt(pair)
    for name, events in until_idle(pair.vllm).items():
        told[name] += events
    assert alike(expected, told) <= CLOSE


def test_choices_share_one_decision_and_log_probabilities_are_ours(pair: Pair) -> None:
    prompt = pair.prompts["long"]
    asks = [ask("a", prompt, policy(Mode.STEER), logprobs=3), ask("b", prompt, policy(Mode.STEER), leader="a")]
    ours, theirs = served(pair.own, asks), served(pair.vllm, asks)
    assert tokens(theirs["b"]) == tokens(theirs["a"]) == tokens(ours["a"])
    assert decision(theirs["b"]) == decision(theirs["a"])
    for found, expected in zip(theirs["a"], ours["a"], strict=True):
        if expected.logprobs is None:
            continue
        assert found.logprobs is not None
        assert found.logprobs.token == pytest.approx(expected.logprobs.token, abs=1e-3)
        assert [token for token, _ in found.logprobs.top] == [token for token, _ in expected.logprobs.top]


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_an_abort_leaves_others_alone_and_nothing_behind(pair: Pair, steps: int, threshold: float) -> None:
    """Before it is computed, while its prompt is, at its decision and in its answer; steered and not."""
    name = "long" if "text" not in pair.prompts else "text"
    other = ask("other", pair.prompts[name], policy(Mode.STEER, threshold=1.0))
    alone = served(pair.vllm, [other])["other"]
    put(
        pair.vllm,
        ask("aborted", pair.prompts["long"], policy(Mode.STEER, threshold)),
    )
    put(pair.vllm, other)
    shown = [event for _ in range(steps) for event in pair.vllm.step()]
    ended = pair.vllm.abort("aborted")
    assert ended is not None
    assert ended.finish is Finish.ABORT
    rest = until_idle(pair.vllm)["other"]
    assert tokens([event for event in shown if event.request.id == "other"]) + tokens(rest) == tokens(alone)
    assert pair.vllm.load == (0, 0, 0.0)


def test_answers_follow_a_schema_beside_others_that_do_not(pair: Pair) -> None:
    prompt, of = pair.prompts["long"], policy(Mode.STEER, threshold=1.0)
    shape = Schema(source_of({"enum": ["red", "blue"]}))
    asks = [replace(ask("json", prompt, of), schema=shape), ask("free", prompt, of)]
    if TINY[pair.own.backbone.info.family].spaced:  # over its spaces no grammar can be made
        for engine in (pair.own, pair.vllm):
            with pytest.raises(GrammarFailed, match="no grammar can be made over this model's tokenizer"):
                engine.prepare(asks)
        return
    ours, theirs = served(pair.own, asks), served(pair.vllm, asks)
    assert alike(ours, theirs) <= CLOSE
    assert pair.own.backbone.tokenizer.decode(tokens(theirs["json"])) in ('"red"', '"blue"')


def test_the_length_is_kept_and_limits_of_it_are_told(pair: Pair) -> None:
    events = served(pair.vllm, [ask("one", pair.prompts["long"], policy(Mode.OFF), min_tokens=TOKENS)])["one"]
    assert (len(tokens(events)), events[-1].finish) == (TOKENS, Finish.LENGTH)


def test_no_verdict_differs_over_many_prompts(pair: Pair) -> None:
    """Half of them flagged, or nearly; every one's score."""
    prompts = many_prompts(pair, 500)
    found = served(
        pair.own, [replace(ask(str(n), each, policy(Mode.MONITOR)), max_tokens=0) for n, each in enumerate(prompts)]
    )
    middle = sorted(decision(events).score or 0.0 for events in found.values())[200:300]
    gap, below = max((after - before, before) for before, after in pairwise(middle))
    acting = policy(Mode.STEER, below + gap / 2)
    asks = [replace(ask(str(n), each, acting), max_tokens=0) for n, each in enumerate(prompts)]
    worst = alike(served(pair.own, asks), theirs := served(pair.vllm, asks))
    flagged = sum(decision(events).flagged for events in theirs.values())
    assert worst <= CLOSE
    print(f"{len(asks)} prompts, {flagged} flagged, largest difference of a score {worst:.2e}")


def test_greedy_answers_of_many_chats_are_the_same(pair: Pair) -> None:
    """As they are and steered."""
    asks = [
        ask(f"{n}/{name}", each, POLICIES[name])
        for n, each in enumerate(many_prompts(pair, 50))
        for name in ("passed", "steered")
    ]
    worst = alike(served(pair.own, asks), served(pair.vllm, asks))
    assert worst <= CLOSE
    print(f"{len(asks)} answers, largest difference of a score {worst:.2e}")
