"""Decisions of the last hour, minute by minute."""

from __future__ import annotations

from server.watch.recent import MINUTES, RecentDecisions


def test_each_decision_is_in_its_minute_and_gone_after_an_hour() -> None:
    now = [120.0]
    recent = RecentDecisions(lambda: now[0])
    recent.add("default", "pass")
    now[0] += 59
    recent.add("default", "pass")
    recent.add("strict", "blocked")
    now[0] += 2
    recent.add("default", "steered")
    assert recent.of("default")[-2:] == [{"pass": 2}, {"steered": 1}]
    assert recent.of("strict")[-2:] == [{"blocked": 1}, {}]
    now[0] += 60 * (MINUTES - 2)
    assert recent.of("default")[:2] == [{"pass": 2}, {"steered": 1}]
    now[0] += 60
    assert recent.of("default")[:2] == [{"steered": 1}, {}]
    now[0] += 10**6
    assert not any(recent.of("default"))
