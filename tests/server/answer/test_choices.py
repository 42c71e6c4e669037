"""Several answers to one prompt (`n`): one object, one stream, one outcome, one judgement, places for all."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import orjson
import pytest

from models.row_sampler import RowSampler, SamplingParams
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Finish, RequestFailed
from steering.policy import Verdict
from tests.server.fakes import FakeBackbone, FakeGuard, as_any, ask
from tests.server.scripted import (
    Connection,
    Script,
    ScriptedRunner,
    application,
    body,
    chat,
    client_of,
    error_of,
    events_of,
    metric,
    serving,
)


def saying(*texts: str, **more: Any) -> ScriptedRunner:
    """A runner whose n-th request says the n-th text."""
    numbers = count()
    return ScriptedRunner(answer=lambda _: Script.saying(texts[next(numbers)], **more))


async def test_a_whole_answer_has_every_choice_by_its_index_and_counts_the_prompt_once() -> None:
    runner = saying("one", "twos", "é")
    async with serving(runner) as client:
        answer = (await chat(client, "hello", n=3)).json()
        assert await metric(client, "autosteer_prompt_tokens_total") == 5
        assert await metric(client, "autosteer_request_success_total") == 1
        assert await metric(client, "autosteer_guard_decisions_total") == 1
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["one", "twos", "é"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 9, 14)
    assert len({id(each.prompt) for each in runner.requests}) == 1  # prepared once


async def test_a_stream_tells_its_choices_apart_by_their_index() -> None:
    runner = saying("one", "twos", "stop here", pause=0.001)
    async with serving(runner) as client:
        response = await chat(client, n=3, stream=True, stop=["here"], stream_options={"include_usage": True})
    *chunks, usage = events_of(response.text)
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    by_index: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        by_index[choice["index"]].append(choice)
    for index, text in enumerate(["one", "twos", "stop "]):
        first, *rest, last = by_index[index]
        assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(choice["delta"]["content"] for choice in rest) == text
        assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert [runner.requests[2].id] == runner.aborted  # the stop string ended this choice alone
    assert usage["usage"]["completion_tokens"] == 3 + 4 + 9


@pytest.mark.parametrize("stream", [False, True])
async def test_where_one_choice_fails_the_answer_fails_once_and_the_others_are_aborted(stream: bool) -> None:
    numbers = count()

    def answer(_: str) -> Script:
        if next(numbers) == 1:
            return Script.saying("x", finish=Finish.ERROR, error=RequestFailed("inner"))
        return Script.saying("abc", finish=None)

    runner = ScriptedRunner(answer=answer)
    async with serving(runner) as client:
        response = await chat(client, n=3, stream=stream)
        assert await metric(client, "autosteer_request_success_total", finished_reason="error") == 1
        assert await metric(client, "autosteer_request_success_total") == 1
        await asyncio.sleep(0)  # for the engine to hear of it
        assert runner.live == 0
    if stream:
        assert events_of(response.text)[-1]["error"]["code"] == "generation_failed"
    else:
        assert error_of(response, 500)["code"] == "generation_failed"
    assert sorted(runner.aborted) == sorted(each.id for each in (runner.requests[0], runner.requests[2]))


async def test_a_reader_who_leaves_ends_every_choice_with_one_outcome() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("a", finish=None))
    app = application(runner)
    async with client_of(app) as client:
        connection = Connection(app, orjson.dumps(body(stream=True, n=3)))
        await connection.has_said(lambda text: text.count('"content":"a"') == 3)
        await connection.leave()
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1
        assert await metric(client, "autosteer_request_success_total") == 1
    assert sorted(runner.aborted) == sorted(each.id for each in runner.requests)


async def test_choices_hold_a_place_each() -> None:
    runner = ScriptedRunner(answer=lambda text: Script.saying(text, finish=None if text == "long" else Finish.STOP))
    app = application(runner, max_rows=2, max_queue=2)
    async with client_of(app) as client:
        long = Connection(app, orjson.dumps(body("long", n=2)))
        await runner.accepted(2)
        assert error_of(await chat(client, n=3), 429)["code"] == "queue_full"
        assert (await chat(client, n=2)).status_code == 200
        error = error_of(await chat(client, n=5), 400)
        assert (error["param"], "at most 4" in error["message"]) == ("n", True)
        await long.leave()
        assert (await chat(client, n=4)).status_code == 200
        assert runner.live == 0


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([Finish.STOP, Finish.LENGTH, Finish.STOP], "length"),
        ([Finish.STOP, Finish.CONTENT_FILTER, Finish.LENGTH], "content_filter"),
        ([Finish.STOP, Finish.STOP, Finish.STOP], "stop"),
    ],
)
async def test_the_one_outcome_is_the_gravest(ends: list[Finish], outcome: str) -> None:
    numbers = count()
    runner = ScriptedRunner(answer=lambda _: Script.saying("x", finish=ends[next(numbers)]))
    async with serving(runner) as client:
        answer = (await chat(client, n=3)).json()
        assert await metric(client, "autosteer_request_success_total", finished_reason=outcome) == 1
        assert await metric(client, "autosteer_request_success_total") == 1
    assert [choice["finish_reason"] for choice in answer["choices"]] == [end.value for end in ends]


async def test_the_choices_of_a_seed_differ_and_come_again() -> None:
    runner = ScriptedRunner()
    async with serving(runner) as client:
        for _ in range(2):
            await chat(client, n=3, seed=7)
        await chat(client, seed=7)
    samplers = [RowSampler(each.ask.params, each.prompt.ids) for each in runner.requests]
    drawn = [[sampler.draw() for _ in range(4)] for sampler in samplers]
    assert drawn[0:3] == drawn[3:6]
    assert len({tuple(numbers) for numbers in drawn[0:3]}) == 3
    assert drawn[6] == drawn[0]  # the first choice is what one choice would be


def test_without_a_seed_choices_have_none() -> None:
    assert SamplingParams().of_choice(3).seed is None


def test_all_choices_of_a_prompt_have_the_decision_of_the_first() -> None:
    class Wavering(FakeGuard):
        """Scores equal prompts differently, as rounding may."""

        scored = 0

        def score(self, notes: Any, layout: object) -> float:
            self.scored += 1
            return 0.9 if self.scored == 1 else super().score(notes, layout)

    backbone = FakeBackbone()
    engine = OwnEngine(as_any(backbone), as_any(Wavering()), Scheduler(2, 1000))
    requests = engine.prepare([ask(str(number), [10], leader="0" if number else None) for number in range(4)])
    for each in requests:
        engine.add(each)
    while not engine.idle:
        engine.step()
    decisions = [each.decision for each in requests]
    assert len({id(decision) for decision in decisions}) == 1
    assert decisions[0] is not None
    assert decisions[0].verdict is Verdict.STEERED
    assert len({tuple(each.output_ids) for each in requests}) == 1
