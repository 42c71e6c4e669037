"""Preparing beside the steps: slow work holds up neither other work nor the order of one request's commands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from server.engine.preparing import Preparing
from server.engine.protocol import Effort


@pytest.fixture
def preparing() -> Iterator[Preparing]:
    preparing = Preparing()
    yield preparing
    preparing.close()


def test_what_takes_no_effort_is_done_at_once_and_the_rest_beside(preparing: Preparing) -> None:
    gate, little = threading.Event(), threading.Event()
    done: list[str] = []
    preparing.run(Effort.MUCH, ["much"], gate.wait)
    preparing.run(Effort.LITTLE, ["little"], little.set)
    preparing.run(Effort.NONE, ["none"], partial(done.append, "none"))
    assert done == ["none"]
    assert little.wait(60)
    gate.set()


def test_what_follows_a_request_s_preparation_waits_for_it_alone(preparing: Preparing) -> None:
    gate, over = threading.Event(), threading.Event()
    done: list[str] = []

    def prepare() -> None:
        gate.wait()
        done.append("prepared")

    def abort() -> None:
        done.append("aborted")
        over.set()

    preparing.run(Effort.MUCH, ["slow", "sibling"], prepare)
    preparing.after("slow", abort)
    preparing.after("other", partial(done.append, "other aborted"))
    assert done == ["other aborted"]
    gate.set()
    assert over.wait(60)
    assert done[1:] == ["prepared", "aborted"]
    preparing.after("slow", partial(done.append, "aborted again"))
    assert done[-1] == "aborted again", "a request that is prepared is waited for no more"


def test_a_preparation_that_raises_lets_what_follows_it_go_on(preparing: Preparing) -> None:
    gate, over = threading.Event(), threading.Event()

    def fail() -> None:
        gate.wait()
        raise ZeroDivisionError

    preparing.run(Effort.LITTLE, ["bad"], fail)
    preparing.after("bad", over.set)
    gate.set()
    assert over.wait(60)
