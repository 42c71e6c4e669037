"""How far a load is: what is passed on of it, and how often."""

from __future__ import annotations

import logging

import pytest

from models.progress import LoadProgress
from server.engine.progress import Loading, Reporter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_long_load_is_sent_twice_a_second_and_logged_every_ten(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.life")
    clock, sent = Clock(), list[LoadProgress]()
    reporter = Reporter(sent.append, clock)
    for eighth in range(1, 251):
        clock.now = eighth / 8
        reporter(LoadProgress("download", eighth, 250))
    assert [each.done for each in sent] == [*range(1, 250, 4), 250]
    assert len(logged(caplog)) == 4  # after 10, 20 and 30 seconds, and the end
    assert logged(caplog)[-1].startswith("loading the model: 0.0 of 0.0 MB of the weights are fetched (100%)")


def test_a_quick_load_is_not_logged_and_its_end_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.life")
    sent: list[LoadProgress] = []
    reporter = Reporter(sent.append, Clock())
    for number in range(1, 101):
        reporter(LoadProgress("weights", number, 100))
    assert [each.done for each in sent] == [1, 100]
    assert logged(caplog) == []


def test_what_is_read_has_been_fetched() -> None:
    loading = Loading()
    assert (str(loading), loading.shares) == ("", {"download": 0, "weights": 0})
    loading.take(LoadProgress("download", 1, 4))
    assert loading.shares == {"download": 0.25, "weights": 0}
    loading.take(LoadProgress("weights", 1, 2))
    assert (str(loading), loading.shares) == (": 1 of 2 tensors are read (50%)", {"download": 1, "weights": 0.5})
