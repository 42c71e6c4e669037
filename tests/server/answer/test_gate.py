"""What of a watched answer is shown, and when: only what was cleared, by every route, however the answer ends."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from server.answer import gate as gates
from server.answer.choices import Choices
from server.answer.gate import RefusalGate, SentenceGate, TokenGate
from server.answer.pipeline import Pipeline
from server.answer.text_decoder import TextDecoder
from server.app import create_app
from server.engine.wire import Parcel
from server.request import EngineFailed, Event, Finish
from server.settings.groups import OutputSettings
from server.settings.schema import Settings
from server.watch.metrics import Metrics
from steering.policy import AnswerDecision, Decision, Fallback, Hold, Mode, OutputPolicy, Verdict
from tests.server.answer.test_generation import Engine, text_of
from tests.server.fakes import as_any, ask, own
from tests.server.records import MemorySink, audit_settings
from tests.server.scripted import (
    MODEL,
    Script,
    ScriptedRunner,
    byte_tokenizer,
    chat,
    client_of,
    events_of,
    metric,
    serving,
)

DECODER = TextDecoder(byte_tokenizer())
SAID = "abcdefghijklmnopqrstuvwxyz"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
LAST_WORDS = "NO, NOT THIS."
OWN_WORDS = "I'm sorry, but I can't do that."


# gates -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(alphabet="a. \n\"')\u3002", max_size=4), max_size=12))
def test_a_sentence_s_end_is_found_wherever_the_tokens_divide_it(pieces: list[str]) -> None:
    gate, text = SentenceGate(), "".join(pieces)
    shown = "".join(map(gate.push, [*pieces, ""]))
    ends = [found.end() for found in re.finditer(r"[.!?][\"')]*\s|[\n\u3002]", text)]
    assert shown == text[: max(ends, default=0)]


def test_a_long_sentence_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 30,000 tokens, as JSON may be, took milliseconds for each of the last, in which no other was told."""
    searched: list[int] = []

    class Counting:
        def finditer(self, text: str, begin: int) -> Iterator[re.Match[str]]:
            searched.append(len(text) - begin)
            return iter(())

    monkeypatch.setattr(gates, "_SENTENCE_END", Counting())
    gate = SentenceGate()
    for _ in range(100):
        gate.push("12, ")
    assert max(searched) <= len("12, ") + 1


@pytest.mark.parametrize("hold", [1, 3, 16, math.inf])
def test_each_token_is_shown_exactly_so_many_tokens_later(hold: float) -> None:
    gate = TokenGate(hold)
    shown = ""
    for number, character in enumerate(SAID):
        shown += gate.push(character)
        assert shown == SAID[: max(0, number + 1 - int(min(hold, 99)))]
        assert gate.held == number + 1 - len(shown)
    assert shown + gate.finish() == SAID
    assert gate.held == 0


def test_a_sentence_is_shown_when_the_token_after_it_comes() -> None:
    gate = SentenceGate()
    pushed = ["It is ", "3.", "14.", ' "Yes."', " No", "! And ", "so on"]
    shown = [gate.push(text) for text in pushed]
    assert shown == ["", "", "", "", "It is 3.14. ", '"Yes." ', "No! "]
    assert gate.held == 2  # of which one is shown in part
    assert gate.finish() == "And so on"


@pytest.mark.parametrize(
    ("text", "begun"),
    [
        (OWN_WORDS, True),
        ("Sorry, no.", True),
        ("My own words are these.", True),  # as the policy's text begins
        ("I can't see a dog.", False),
        ("Here is how to do it.", False),
    ],
)
def test_a_refusal_is_shown_once_it_has_begun(text: str, begun: bool) -> None:
    gate = RefusalGate(TokenGate(2), "My own words.")
    shown = "".join(gate.push(word + " ") for word in text.split())
    assert gate.begun is begun
    assert (shown + gate.finish()).strip() == (text if begun else "")
    for _ in range(16):
        gate.push("")
    assert gate.failed is not begun


# one answer --------------------------------------------------------------------------------------------------------


def watching(
    mode: Mode = Mode.STEER, hold: Hold = 4, stops: Sequence[str] = (), verdict: Verdict = Verdict.PASS
) -> tuple[Choices, Engine]:
    made = ask("r", [1, 2], max_tokens=1000)
    made = replace(made, policy=replace(made.policy, output=OutputPolicy(mode, 0.5, hold)))
    request = own(made)
    request.decision = Decision(verdict, 0.75, 1.0 if verdict is Verdict.STEERED else 0.0)
    engine = Engine()
    of = lambda request: Pipeline.of(request, DECODER, stops)  # noqa: E731
    choices = Choices(Parcel([request]), engine, of, Metrics())
    choices.start()
    return choices, engine


def say(choices: Choices, engine: Engine, text: str) -> None:
    engine.deliver([Event(choices.generations[0].request, token=byte) for byte in text.encode()])


def flag(choices: Choices, engine: Engine, verdict: Verdict, reason: Fallback | None = None) -> None:
    request = choices.generations[0].request
    request.answer = AnswerDecision(verdict, 0.9, 9, reason)
    engine.deliver([Event(request, finish=Finish.CONTENT_FILTER if verdict is Verdict.BLOCKED else None)])


async def test_a_flagged_answer_goes_on_as_a_refusal_after_what_was_shown() -> None:
    choices, engine = watching()
    say(choices, engine, "shown, held")
    assert choices.tokens == len("shown, ")
    flag(choices, engine, Verdict.STEERED)
    say(choices, engine, OWN_WORDS)
    engine.deliver([Event(choices.generations[0].request, finish=Finish.CONTENT_FILTER)])
    assert await text_of(choices) == "shown, \n\n" + OWN_WORDS
    assert choices.tokens == len("shown, ") + len(OWN_WORDS)
    assert choices.outcome is Finish.CONTENT_FILTER
    assert choices.generations[0].fallback is None


async def test_a_blocked_answer_ends_with_the_policy_s_text() -> None:
    choices, engine = watching(Mode.BLOCK)
    say(choices, engine, "shown, held")
    flag(choices, engine, Verdict.BLOCKED, Fallback.MODE)
    assert await text_of(choices) == "shown, \n\n" + choices.generations[0].request.policy.refusal
    assert (choices.outcome, choices.tokens) == (Finish.CONTENT_FILTER, len("shown, "))
    assert choices.generations[0].fallback is Fallback.MODE


@pytest.mark.parametrize("flagged_by", ["prompt", "answer"])
@pytest.mark.parametrize("ends", [False, True])
async def test_where_no_refusal_has_begun_by_the_16th_token_the_policy_s_text_stands(
    flagged_by: str, ends: bool
) -> None:
    choices, engine = watching(verdict=Verdict.STEERED if flagged_by == "prompt" else Verdict.PASS)
    if flagged_by == "answer":
        flag(choices, engine, Verdict.STEERED)
    if ends:
        say(choices, engine, "Here it is.")
        engine.deliver([Event(choices.generations[0].request, finish=Finish.CONTENT_FILTER)])
    else:
        say(choices, engine, "Here is how that is done, step by step")
    assert await text_of(choices) == choices.generations[0].request.policy.refusal
    assert (choices.outcome, choices.tokens) == (Finish.CONTENT_FILTER, 0)
    assert choices.generations[0].fallback is Fallback.NOT_BEGUN
    assert engine.aborted == ([] if ends else ["r"])


async def test_a_refusal_that_is_flagged_again_ends_with_the_policy_s_text() -> None:
    choices, engine = watching()
    flag(choices, engine, Verdict.STEERED)
    say(choices, engine, OWN_WORDS + " But here")
    flag(choices, engine, Verdict.BLOCKED, Fallback.AGAIN)
    refusal = choices.generations[0].request.policy.refusal
    assert await text_of(choices) == OWN_WORDS + " But \n\n" + refusal


async def test_a_stop_string_ends_an_answer_once_what_is_before_it_is_cleared() -> None:
    choices, engine = watching(stops=["STOP"])
    say(choices, engine, "one STOP")
    assert not choices.over.is_set()
    assert "".join(delta.text for delta in choices.generations[0].take()) == "one "[: len("one STOP") - 4]
    say(choices, engine, "x")
    assert (choices.outcome, choices.tokens, engine.aborted) == (Finish.STOP, len("one STOP"), ["r"])
    choices, engine = watching(Mode.BLOCK, hold="all", stops=["STOP"])
    say(choices, engine, "one STOP")
    flag(choices, engine, Verdict.BLOCKED, Fallback.MODE)
    assert await text_of(choices) == choices.generations[0].request.policy.refusal


@pytest.mark.parametrize("finish", [Finish.ERROR, Finish.ABORT, Finish.TIMEOUT])
@pytest.mark.parametrize("hold", [4, "sentence", "all"])
async def test_what_is_held_when_the_engine_dies_is_never_shown(hold: Hold, finish: Finish) -> None:
    choices, engine = watching(hold=hold, stops=["held"])
    say(choices, engine, "shown. held")
    request = choices.generations[0].request
    engine.deliver([Event(request, finish=finish, error=EngineFailed("it is gone"))])
    assert await text_of(choices) == {4: "shown. ", "sentence": "shown. ", "all": ""}[hold]
    assert choices.outcome is finish


async def test_a_monitored_answer_holds_nothing() -> None:
    choices, engine = watching(Mode.MONITOR, hold=0)
    say(choices, engine, "a")
    assert choices.tokens == 1
    flag(choices, engine, Verdict.MONITORED)
    say(choices, engine, "b")
    engine.deliver([Event(choices.generations[0].request, finish=Finish.STOP)])
    assert (await text_of(choices), choices.generations[0].refused) == ("ab", False)


# every route -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request by some route, and how its answer goes on: it ends, is flagged, or fails, after so many tokens."""

    route: str
    stream: bool
    hold: int | str
    tokens: int
    end: str
    stop: bool
    logprobs: bool
    choices: int
    form: str

    @property
    def body(self) -> dict[str, Any]:
        """What is asked."""
        mode = "steer" if self.end == "steer" else "block"
        guard = {"eps": 1.0, "output": {"mode": mode, "hold": self.hold}}
        ask: dict[str, Any] = {"model": MODEL, "stream": self.stream, "guard": guard}
        if self.route == "/v1/responses":
            return {**ask, "input": "hello"}
        if self.route == "/v1/messages":
            stops = {"stop_sequences": ["m"]} if self.stop else {}
            return {**ask, **stops, "max_tokens": 99, "messages": [{"role": "user", "content": "hello"}]}
        ask |= {"n": self.choices} | ({"stop": ["m"]} if self.stop else {})
        if self.route == "/v1/completions":
            return {**ask, "prompt": "hello", "max_tokens": 99} | ({"logprobs": 2} if self.logprobs else {})
        forms: dict[str, dict[str, Any]] = {
            "json": {"response_format": {"type": "json_object"}},
            "call": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        }
        return {
            **ask,
            **forms.get(self.form, {}),
            **({"logprobs": True, "top_logprobs": 0} if self.logprobs and self.form != "call" else {}),
            "messages": [{"role": "user", "content": "hello"}],
        }

    @property
    def script(self) -> Script:
        """What the engine does."""
        made = Script.saying(SAID[: self.tokens])
        match self.end:
            case "block":
                decided = AnswerDecision(Verdict.BLOCKED, 0.9, self.tokens, Fallback.MODE)
                return replace(made, answer=decided, finish=Finish.CONTENT_FILTER)
            case "steer":
                decided = AnswerDecision(Verdict.STEERED, 0.9, self.tokens)
                after = list(OWN_WORDS.upper().encode())
                return replace(made, answer=decided, after=after, finish=Finish.CONTENT_FILTER)
            case "die":
                return replace(made, finish=Finish.ERROR, error=EngineFailed("gone"))
        return made

    @property
    def cleared(self) -> str:
        """The text of the tokens that the engine has cleared, up to the stop string."""
        if self.end == "stop":
            count = self.tokens
        else:
            count = max(0, self.tokens - self.hold) if isinstance(self.hold, int) else 0  # all is one sentence
        text = SAID[: self.tokens]
        if self.route == "/v1/responses":
            return text[:count]
        if self.stop and "m" in text[:-1]:  # and the event after it has come
            count = self.tokens
        text = text[:count]
        return text.partition("m")[0] if self.stop else text


CASES = st.builds(
    Case,
    route=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]),
    stream=st.booleans(),
    hold=st.sampled_from([1, 4, 16, "sentence", "all"]),
    tokens=st.integers(0, 26),
    end=st.sampled_from(["stop", "block", "steer", "die"]),
    stop=st.booleans(),
    logprobs=st.booleans(),
    choices=st.integers(1, 2),
    form=st.sampled_from(["text", "json", "call"]),
)


def strings_of(value: Any) -> list[str]:
    """Every text of an answer, of the fields that hold what the model said."""
    if isinstance(value, list):
        return [text for each in value for text in strings_of(each)]
    if not isinstance(value, dict):
        return []
    fields = [value.get(name) for name in ("content", "text", "delta", "refusal", "token", "arguments")]
    own = [text for text in [*fields, *(value.get("tokens") or ())] if isinstance(text, str)]
    return own + [text for each in value.values() for text in strings_of(each)]


def said_in(response: httpx.Response) -> str:
    """All that was shown of the answer's own letters, in any field."""
    lines = response.text.split("\n") if response.text.startswith(("data:", "event:")) else [response.text]
    objects = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith(("data: {", "{"))]
    return "".join(text for each in objects if each.get("error") is None for text in strings_of(each))


@contextmanager
def served() -> Iterator[Callable[[Case], httpx.Response]]:
    """What asks one server, which plays the script of the case that it is asked for."""
    scripts: dict[str, Script] = {}
    runner = ScriptedRunner(answer=lambda _: scripts["now"], watches=True)
    output = {"mode": "block", "hold": 1}
    over_http = serving(runner, mode="block", output=output, refusal=LAST_WORDS, may_loosen=True)
    with asyncio.Runner() as loop:

        async def asked(case: Case) -> httpx.Response:
            scripts["now"] = case.script
            return await client.post(case.route, json=case.body)

        client = loop.run(over_http.__aenter__())
        try:
            yield lambda case: loop.run(asked(case))
        finally:
            loop.run(over_http.__aexit__(None, None, None))


def test_no_route_emits_a_token_that_was_not_cleared() -> None:
    """Letters of the answer are small and each is a token; those of refusals are capitals."""
    with served() as ask:

        @given(CASES)
        @of_hypothesis(max_examples=50, deadline=None)
        def every(case: Case) -> None:
            response = ask(case)
            shown = {letter for letter in said_in(response) if letter in SAID}
            assert shown <= {*case.cleared}
            if case.end != "die":
                assert response.status_code == 200, response.text
                assert shown == {*case.cleared}

        every()


# what is told of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("verdict", "flagged"), [(Verdict.PASS, False), (Verdict.STEERED, True), (Verdict.BLOCKED, True)]
)
async def test_the_scores_of_an_answer_are_told_at_its_end(verdict: Verdict, flagged: bool, stream: bool) -> None:
    reason = Fallback.MODE if verdict is Verdict.BLOCKED else None
    finish = Finish.STOP if verdict is Verdict.PASS else Finish.CONTENT_FILTER
    after = list(OWN_WORDS.encode()) if verdict is Verdict.STEERED else []
    script = replace(
        Script.saying("shown and held", answer=AnswerDecision(verdict, 0.875, 14, reason), finish=finish), after=after
    )
    runner = ScriptedRunner(answer=lambda _: script, watches=True)
    async with serving(runner, output={"mode": "steer", "hold": 4}) as client:
        response = await chat(client, stream=stream, moderation={"model": MODEL})
        decided = await metric(client, "autosteer_answer_decisions_total", decision=verdict.value, mode="steer")
        fallen = await metric(client, "autosteer_answer_fallbacks_total", reason="mode")
        dropped = await metric(client, "autosteer_answer_dropped_tokens_total")
    told = [each["moderation"] for each in events_of(response.text) if "moderation" in each] if stream else []
    output = (told or [response.json()["moderation"]])[-1]["output"]
    assert len(told) == (2 if stream else 0)
    assert not told or told[0]["output"]["code"] == "not_over"
    (result,) = output["results"]
    assert (result["flagged"], result["category_scores"]) == (flagged, {"unsafe": 0.875})
    assert (decided, fallen, dropped) == (1, verdict is Verdict.BLOCKED, 4 * flagged)


async def test_an_audit_record_says_what_became_of_the_answer() -> None:
    script = Script.saying(
        "x", answer=AnswerDecision(Verdict.BLOCKED, 0.875, 1, Fallback.SHORT), finish=Finish.CONTENT_FILTER
    )
    sink, runner = MemorySink(), ScriptedRunner(answer=lambda _: script, watches=True)
    settings = Settings(audit=audit_settings(), output=OutputSettings(mode=Mode.STEER))
    app = create_app(settings, as_any(runner), name=MODEL, sink=sink)
    async with client_of(app) as client:
        await chat(client)
    (record,) = sink.records
    assert (record.answer_mode, record.answer_decision) == ("steer", "blocked")
    assert (record.answer_score, record.answer_reason) == (0.875, "short")
