"""Failures in a row wait longer and have an end; one after a long time of service begins a row of its own."""

from __future__ import annotations

from server.engine.restarts import SECONDS, STEADY_SECONDS, Restarts


def test_failures_in_a_row_wait_longer_and_then_it_is_given_up() -> None:
    now = 0.0
    restarts = Restarts(clock=lambda: now)
    waits = []
    for _ in SECONDS:
        restarts.served()
        now += STEADY_SECONDS - 1
        waits.append(restarts.wait())
    assert waits == list(SECONDS) == sorted(SECONDS)
    assert restarts.wait() is None
    assert restarts.count == len(SECONDS)


def test_one_that_served_for_long_begins_anew() -> None:
    now = 0.0
    restarts = Restarts(clock=lambda: now)
    for _ in range(20):
        restarts.served()
        now += STEADY_SECONDS
        assert restarts.wait() == SECONDS[0]
    assert restarts.wait() == SECONDS[1]  # it did not even load
    assert restarts.count == 21
