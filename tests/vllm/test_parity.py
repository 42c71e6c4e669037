"""The guard on vLLM against our own engine: the same scores, decisions and greedy answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.demo.dialogue import pairs
from server.request import Ask, Finish
from steering.policy import Mode, Verdict
from tests.vllm.models import TOKENS, Pair, ask, decision, demo_pair, policy, put, served, tiny_pair, tokens, until_idle

pytestmark = pytest.mark.vllm
CLOSE = 1e-4
TWINS = 63  # of each of four kinds: 504 prompts


@pytest.fixture(scope="module")
def demo() -> Pair:
    return demo_pair()


@pytest.fixture(scope="module", params=["demo", "llama", "qwen2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "demo":
        found: Pair = request.getfixturevalue("demo")
        return found
    return tiny_pair(request.param, tmp_path_factory.mktemp(request.param))


def mixed(pair: Pair) -> list[Ask]:
    """Every prompt under every mode, flagged and not."""
    policies = {
        "off": policy(Mode.OFF),
        "passed": policy(Mode.STEER, threshold=1.0),
        "monitored": policy(Mode.MONITOR),
        "steered": policy(Mode.STEER),
        "blocked": policy(Mode.BLOCK),
    }
    return [
        ask(f"{prompt}/{name}", pair.prompts[prompt], each)
        for prompt in pair.prompts
        for name, each in policies.items()
    ]


def test_scores_and_greedy_answers_of_a_mixed_batch_are_those_of_our_own_engine(pair: Pair) -> None:
    """Prompts in chunks among them, with and without images, steered and not, side by side."""
    asks = mixed(pair)
    ours, theirs = served(pair.own, asks), served(pair.vllm, asks)
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, expected in ours.items():
        found = theirs[name]
        assert tokens(found) == tokens(expected), name
        assert [event.finish for event in found] == [event.finish for event in expected]
        one, other = decision(expected), decision(found)
        assert (one.verdict, one.eps) == (other.verdict, other.eps)
        if one.score is not None and other.score is not None:
            worst = max(worst, abs(one.score - other.score))
    assert worst <= CLOSE
    assert {decision(events).verdict for events in theirs.values()} == {*Verdict}
    changed = [name for name in pair.prompts if tokens(theirs[f"{name}/steered"]) != tokens(theirs[f"{name}/passed"])]
    assert changed
    print(f"{len(asks)} requests, largest difference of a score {worst:.2e}")


def test_a_prefix_hit_has_the_score_and_answer_of_the_first_time(pair: Pair) -> None:
    asks = [ask("again", pair.prompts["long"], policy(Mode.STEER, threshold=1.0))]
    first, second = served(pair.vllm, asks), served(pair.vllm, asks)
    cached = second["again"][-1].request.cached_tokens
    assert cached is not None
    assert cached >= 128
    assert tokens(second["again"]) == tokens(first["again"])
    assert decision(second["again"]).score == pytest.approx(decision(first["again"]).score, abs=CLOSE)


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


def test_the_length_is_kept_and_limits_of_it_are_told(pair: Pair) -> None:
    events = served(pair.vllm, [ask("one", pair.prompts["long"], policy(Mode.OFF), min_tokens=TOKENS)])["one"]
    assert (len(tokens(events)), events[-1].finish) == (TOKENS, Finish.LENGTH)


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
