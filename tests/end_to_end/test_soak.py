"""Careless and hostile clients against a real server: every request has one outcome, and nothing is left of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.soak import HALF, Site, run, run_until_signal
from tests.end_to_end.forked import ForkedServer

FLAT = 0.02  # of the memory at half-time, added in the second half


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, make=ForkedServer)


@pytest.fixture
def whole_site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.chance
def test_every_request_ends_in_one_outcome_and_nothing_is_left(site: Site) -> None:
    result, problems = run(site, clients=40, requests=400)
    assert not problems, problems
    assert result.ended == 400
    assert {"stop", "length", "content_filter", "left"} <= set(result.outcomes)


@pytest.mark.chance
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_load_leaves_no_half_answer_and_loses_no_record(site: Site, sig: signal.Signals) -> None:
    result, code, problems = run_until_signal(site, sig, clients=40, requests=200)
    assert not problems, problems
    assert (code, result.outcomes[HALF]) == (0, 0)


@pytest.mark.chance
def test_after_a_kill_within_a_load_the_log_is_whole_and_the_server_starts(site: Site) -> None:
    _, code, _ = run_until_signal(site, signal.SIGKILL, clients=40, requests=200)
    assert code == -signal.SIGKILL
    with site.server() as server:
        assert server.model
    assert site.records() > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_of_two_hundred_clients(whole_site: Site) -> None:
    result, problems = run(whole_site, clients=200, requests=10_000)
    start, growth = result.growth()
    print(f"{result.seconds:.0f} s, {start:.0f} MiB at half-time, {growth:+.1f} MiB until the end")
    assert not problems, problems
    assert growth <= FLAT * start


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_signal_within_the_load_of_two_hundred_clients(whole_site: Site) -> None:
    for _ in range(5):
        result, code, problems = run_until_signal(whole_site, signal.SIGTERM, clients=200, requests=2000)
        assert not problems, problems
        assert (code, result.outcomes[HALF]) == (0, 0)
