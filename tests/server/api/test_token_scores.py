"""`guard.scores`: what the guard saw of each token of a prompt, for those who may ask."""

from __future__ import annotations

import pytest

from tests.server.scripted import ScriptedRunner, body, chat, data_url, error_of, events_of, png, serving

ASKED = {"guard": {"scores": True}}


async def test_an_answer_tells_the_score_at_each_token_of_its_prompt() -> None:
    async with serving(ScriptedRunner(), token_scores=True, threshold=0.3) as client:
        found = (await chat(client, "ab", data_url(png()), **ASKED)).json()["token_scores"]
    assert (found["mode"], found["threshold"]) == ("steer", 0.3)
    prompt = found["prompt"]
    assert prompt["tokens"] == ["a", "b", *["<image>"] * 7]
    assert prompt["scores"] == [0.125] * 8 + [0.25]
    assert (prompt["ends"], prompt["counted"]) == ([8], [[8, 9]])
    assert prompt["images"] == [{"begin": 2, "end": 9, "side": 2}]


async def test_a_stream_tells_them_in_its_first_chunk() -> None:
    async with serving(ScriptedRunner(), token_scores=True) as client:
        events = events_of((await chat(client, "ab", stream=True, n=2, **ASKED)).text)
    assert events[0]["token_scores"]["prompt"]["scores"] == [0.125, 0.25]
    assert not any("token_scores" in event for event in events[1:])


async def test_a_stream_tells_how_much_is_held_back_and_nothing_of_it() -> None:
    async with serving(ScriptedRunner(watches=True), token_scores=True, output={"hold": 4}) as client:
        choices = [
            event["choices"][0] for event in events_of((await chat(client, "abcdefgh", stream=True, **ASKED)).text)
        ]
        plain = events_of((await chat(client, "abcdefgh", stream=True)).text)
    said = [choice["delta"].get("content") or "" for choice in choices]
    held = [choice["held"] for choice in choices]
    assert ("".join(said), max(held), held[-1]) == ("abcdefgh", 4, 0)
    first = next(at for at, text in enumerate(said) if text)
    assert held[first - 1 : first + 1] == [4, 4]
    assert choices[first - 1]["delta"] == {}
    assert not any("held" in choice for event in plain for choice in event["choices"])


async def test_they_are_told_where_the_policy_is_off_and_nothing_is_done_about_them() -> None:
    runner = ScriptedRunner()
    async with serving(runner, token_scores=True, mode="off") as client:
        found = (await chat(client, "ab", **ASKED)).json()["token_scores"]
    assert found["mode"] == "monitor"
    assert found["prompt"]["scores"] == [0.125, 0.25]


@pytest.mark.parametrize("asked", [{}, {"guard": {"scores": False}}, {"guard": {"mode": "block"}}])
async def test_nothing_is_told_that_was_not_asked_for(asked: dict[str, object]) -> None:
    runner = ScriptedRunner()
    async with serving(runner, token_scores=True) as client:
        assert "token_scores" not in (await chat(client, "ab", **asked)).json()
    assert not runner.requests[0].ask.scores


async def test_a_policy_that_does_not_say_so_tells_them_to_nobody() -> None:
    async with serving(ScriptedRunner()) as client:
        response = await chat(client, "ab", **ASKED)
    error = error_of(response, 403)
    assert (error["param"], error["code"]) == ("guard.scores", "token_scores_off")


async def test_other_routes_do_not_know_the_field() -> None:
    async with serving(ScriptedRunner(), token_scores=True, completions="on") as client:
        response = await client.post("/v1/completions", json={**body(), "messages": None, "prompt": "x", **ASKED})
    assert response.status_code == 400
