"""The worker's side of the guard: which rows are read and bent, of which states."""

from __future__ import annotations

from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from server.engine.vllm.worker import Read, Row, Worker
from tests.server.fakes import as_any

DEPTH = 4


class Guard:
    """Reads each layer's first number, and doubles bent rows."""

    width = 2

    def __init__(self, *layers: int) -> None:
        self.layers = layers

    def read(self, states: Tensor) -> Tensor:
        return states[:, :, 0]

    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        return hidden * (1 + eps)[:, None]


@pytest.fixture
def channel() -> SimpleQueue[Read]:
    return SimpleQueue()


def states(*layers: float) -> Tensor:
    """Two rows: of each layer its number and, in the second row, 10 more."""
    return torch.cat([torch.tensor([[value, 0.0], [value + 10, 0.0]]) for value in layers], dim=-1)


def test_layers_are_read_in_the_readers_order_of_rows_without_an_answer(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH, 2)), DEPTH, channel)
    assert worker.extra_layers == (2,)
    worker.rows |= {0: Row("begun", 0.0, [5]), 1: Row("new", 0.0, [])}
    hidden = worker.guarded(states(4.0, 2.0))
    assert hidden.equal(states(4.0))
    run, notes, _ = channel.get_nowait()
    assert (run, notes.tolist()) == ("new", [[14.0, 12.0]])
    assert channel.empty()


def test_rows_with_an_eps_are_bent_and_no_other(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.rows |= {0: Row("plain", 0.0, [5]), 1: Row("steered", 1.0, [7])}
    assert worker.guarded(states(4.0)).tolist() == [[4, 0], [28, 0]]


def test_warming_up_reads_nothing_and_other_rows_than_known_are_an_error(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    assert worker.guarded(states(4.0)).equal(states(4.0))
    assert channel.empty()
    worker.rows[0] = Row("alone", 0.0, [])
    with pytest.raises(RuntimeError, match="2 rows, and its adapter knows 1"):
        worker.guarded(states(4.0))


def test_what_cannot_be_read_is_no_number(channel: SimpleQueue[Read], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is flagged, where nothing at all would fail the request."""
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    monkeypatch.setattr(Guard, "read", lambda *_: 1 / 0)
    worker.rows |= {0: Row("a", 0.0, []), 1: Row("b", 0.0, [5])}
    worker.guarded(states(4.0))
    assert channel.get_nowait().notes.isnan().all()
