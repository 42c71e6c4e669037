"""Loads and what is counted of them: good answers, those that never came, and that no prompt is sent twice."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.progress import Progress

from benchmarks.bench import QUICK, Bench
from benchmarks.canned import HEAD, Canned, chunk, events, parts
from benchmarks.client import Answer, request_bytes
from benchmarks.load import Load, closed_load, is_good, open_load
from benchmarks.plots import goodput
from benchmarks.scenarios.arrivals import _goal
from benchmarks.scenarios.fresh import Case, _pictures, _texts
from benchmarks.workloads import Body, fresh

TOKENS = 5


def answer(*marks: float) -> Answer:
    return Answer(0.0, [*marks], marks[-1], len(marks), None, None)


def load_of(answers: Sequence[Answer], asking: float) -> Load:
    return Load(answers, 60.0, 0.0, asking)


def against(pieces: Sequence[bytes], send: Callable[[str, Sequence[bytes]], Load]) -> Load:
    """A load of requests to a server that answers all of them with these pieces."""

    async def served() -> Load:
        server = await asyncio.get_running_loop().create_server(lambda: Canned(pieces), "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await asyncio.to_thread(send, url, [request_bytes(url, {})])

    return asyncio.run(served())


@pytest.mark.parametrize(
    ("marks", "good"),
    [
        ([0.9, 1.0, 1.29], True),
        ([1.1, 1.2], False),
        ([0.1, 0.2, 0.5], False),
        ([0.5], True),
    ],
)
def test_a_good_answer_begins_within_a_second_and_never_stalls(marks: list[float], good: bool) -> None:
    assert is_good(answer(*marks)) is good


def test_goodput_is_of_the_time_in_which_requests_came() -> None:
    answers = [answer(0.1, 0.2), answer(0.1, 0.2), answer(3.0, 3.1)]
    assert load_of(answers, asking=4.0).goodput == 0.5


def test_who_answers_nothing_well_is_counted_as_if_one_had_been_good() -> None:
    ours, theirs = load_of([answer(0.1)] * 8, asking=4.0), load_of([answer(2.0)], asking=4.0)
    assert _goal("other", [ours], [theirs]).found.value == 8.0


@pytest.mark.chance
def test_an_open_load_gives_up_what_is_never_answered() -> None:
    half = [HEAD, chunk(events(1)[0])]
    load = against(half, lambda url, requests: open_load(url, requests, rate=500.0, count=6, patience=0.1))
    assert len(load.answers) == 0
    assert len(load.lost) == 6
    assert load.goodput == 0.0


def test_an_open_load_counts_what_is_refused_as_lost() -> None:
    refusal = [b'HTTP/1.1 429 X\r\ncontent-length: 16\r\n\r\n{"error":"busy"}']
    load = against(refusal, lambda url, requests: open_load(url, requests, rate=500.0, count=6))
    assert len(load.lost) == 6
    assert all("429" in why for why in load.lost)


@pytest.mark.chance
def test_an_open_load_loses_nothing_else() -> None:
    load = against(parts(TOKENS), lambda url, requests: open_load(url, requests, rate=500.0, count=6))
    assert (len(load.answers), [*load.lost]) == (6, [])
    # The loop's clock ticks in milliseconds: the last request may be sent, and answered, one before it is due.
    assert 0 < load.asking <= load.seconds + 0.002


@pytest.mark.chance
def test_a_closed_load_ends_when_its_time_is_up_and_waits_for_what_is_under_way() -> None:
    load = against(parts(TOKENS), lambda url, requests: closed_load(url, requests, clients=3, count=100, seconds=0.0))
    assert len(load.answers) == 3


def prompts(bodies: Sequence[Body]) -> set[str]:
    return {json.dumps(body["messages"]) for body in bodies}


def pictures(bodies: Sequence[Body]) -> list[str]:
    contents = [body["messages"][0]["content"] for body in bodies]
    return [part["image_url"]["url"] for parts in contents for part in parts if part["type"] == "image_url"]


def test_no_prompt_and_no_picture_is_sent_twice_to_a_server_that_stays_up() -> None:
    benches = [Bench(QUICK, Progress(), run=run) for run in (1, 2)]
    cases = [Case("pictures", 4, _pictures), Case("words", 4, _texts), Case("pictures", 1, _pictures)]
    rounds = [case.bodies(bench, number) for bench in benches for case in cases for number in (-1, 0, 1)]
    bodies = [*itertools.chain(*rounds)]
    assert len(prompts(bodies)) == len(bodies)
    assert len(set(pictures(bodies))) == len(pictures(bodies)) > 0
    again = Bench(QUICK, Progress(), run=1)
    assert cases[0].bodies(again, 0) == cases[0].bodies(benches[0], 0), "a run can be repeated by its number"


def test_fresh_prompts_are_of_all_lengths_and_have_pictures_of_their_own() -> None:
    bodies = fresh(60, lambda text: len(text.split()), max_tokens=4, seed=7)
    assert len(prompts(bodies)) == 60
    assert len(set(pictures(bodies))) == 30
    lengths = sorted(len(body["messages"][0]["content"][0]["text"].split()) for body in bodies[1::2])
    assert 15 <= lengths[0] < 40
    assert 1000 < lengths[-1] <= 2000
    assert 60 < lengths[15] < 500, "short ones are as frequent as long ones by the logarithm"


def test_goodput_is_drawn_the_same_for_the_same_figures(tmp_path: Path) -> None:
    def point(share: float, server: str, first: float | None) -> dict[str, Any]:
        return {"share": share, "server": server, "arrived": 4 * share, "good": [share, 2.0], "first_token_p50": first}

    points = [point(0.5, "ours", 0.2), point(0.8, "ours", 0.4), point(0.8, "other", None)]
    run, drawn = tmp_path / "run.json", [tmp_path / name for name in ("a.svg", "b.svg")]
    run.write_text(json.dumps({"scenarios": [{"name": "blocks"}, {"name": "open-loop", "goodput": points}]}))
    for out in drawn:
        goodput(run, out)
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    run.write_text(json.dumps({"scenarios": [{"name": "blocks"}]}))
    with pytest.raises(typer.BadParameter, match="no open-loop"):
        goodput(run, drawn[0])
