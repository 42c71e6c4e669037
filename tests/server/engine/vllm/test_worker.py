"""The worker's side of the guard: which tokens are read, what is known of them later, and which rows are bent."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from server.engine.vllm import worker as worker_module
from server.engine.vllm.worker import AnswerRead, PromptRead, Read, Row, Step, Worker
from steering.answers import AnswerReader
from tests.server.fakes import as_any
from tests.server.guards import token_reader

DEPTH = 4
BLOCK = 4  # tokens


class Guard:
    """Reads each layer's number, and doubles bent rows."""

    answers: AnswerReader | None = None

    def __init__(self, *layers: int) -> None:
        self.layers = layers
        self.width = len(layers)

    def read(self, states: Tensor) -> Tensor:
        return states[:, :, 0]

    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        return hidden * (1 + eps)[:, None]


class Watching(Guard):
    """Reads answers as well, as the number after layer 1."""

    answers = token_reader(0.0)


@pytest.fixture
def channel() -> SimpleQueue[Read]:
    return SimpleQueue()


def new(run: str, prompt: int, *output: int, eps: float = 0.0, watched: bool = False) -> Row:
    return Row(run, eps, watched, prompt, output)


def step(*rows: tuple[Sequence[int], int, int]) -> Step:
    """Of each row its blocks, how many of its tokens are computed before this step, and with it."""
    ends, slots = [], []
    for blocks, before, after in rows:
        slots += [blocks[at // BLOCK] * BLOCK + at % BLOCK for at in range(before, after)]
        ends.append(len(slots))
    most = max(len(blocks) for blocks, _, _ in rows)
    table = torch.tensor([[*blocks, *[0] * (most - len(blocks))] for blocks, _, _ in rows])
    return Step(ends, [after for _, _, after in rows], torch.tensor(slots), table, BLOCK)


def states(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def heard(channel: SimpleQueue[Read]) -> list[Read]:
    found = []
    while not channel.empty():
        found.append(channel.get_nowait())
    return found


def prompts(channel: SimpleQueue[Read]) -> dict[str, list[list[float]]]:
    return {each.run: each.notes.tolist() for each in heard(channel) if isinstance(each, PromptRead)}


def test_a_prompt_is_told_whole_with_its_last_chunk_layers_in_the_readers_order(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH, 2)), DEPTH, channel)
    assert worker.extra_layers == (2,)
    worker.rows |= {0: new("begun", 2, 5), 1: new("new", 6)}
    worker.read(states(9, 1, 2, 3, 4), [states(90, 10, 20, 30, 40)], step(([5], 2, 3), ([3, 1], 0, 4)))
    assert channel.empty()
    worker.rows[0] = worker.rows.pop(1)
    worker.read(states(5, 6), [states(50, 60)], step(([3, 1], 4, 6)))
    assert prompts(channel) == {"new": [[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]}


def test_of_a_prefix_that_is_known_is_told_what_was_read_of_it(channel: SimpleQueue[Read]) -> None:
    """Of an answer's tokens too, and nothing is known of blocks that nobody has computed."""
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.rows[0] = new("first", 3, 7)
    worker.read(states(1, 2, 3, 4), [], step(([6, 2], 0, 4)))
    worker.rows[0] = new("second", 5)
    worker.read(states(50), [], step(([6, 9], 4, 5)))
    assert prompts(channel) == {"second": [[1], [2], [3], [4], [50]]}
    worker.rows[0] = new("third", 5)
    worker.read(states(50), [], step(([7, 9], 4, 5)))
    (notes,) = prompts(channel).values()
    assert torch.tensor(notes)[:4].isnan().all()


def test_tokens_of_answers_are_read_together_and_a_place_has_what_was_computed_last(
    channel: SimpleQueue[Read], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer's place is given to another row before it is read."""
    monkeypatch.setattr(worker_module, "READ_TOGETHER", 4)
    read: list[int] = []

    def told(_: Guard, states: Tensor) -> Tensor:
        read.append(len(states))
        return states[:, :, 0]

    monkeypatch.setattr(Guard, "read", told)
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.rows[0] = new("begins", 1, 5)
    worker.read(states(10), [], step(([1], 1, 2)))
    worker.rows[0] = new("has its block now", 1, 5)
    worker.read(states(20), [], step(([1], 1, 2)))
    assert read == []
    worker.rows[0] = new("asks", 3)
    worker.read(states(30), [], step(([1], 2, 3)))
    assert read == [3]
    assert prompts(channel)["asks"][1:] == [[20], [30]]
    worker.rows[0] = new("goes on", 1, *range(9))
    for value in range(5):
        worker.read(states(value), [], step(([1, 2], value + 1, value + 2)))
    assert read == [3, 4]


def test_each_token_of_an_answer_that_is_watched_is_told_once(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Watching(DEPTH)), DEPTH, channel)
    assert worker.extra_layers == (1,)
    output = [7]
    worker.rows |= {0: Row("watched", 0.0, watched=True, prompt_tokens=2, output=output), 1: new("other", 2, 7)}
    both = ([1], 2, 3), ([2], 2, 3)
    worker.read(states(0, 0), [states(30, 31)], step(*both))
    assert heard(channel) == [AnswerRead("watched", 0, 30)]
    del worker.rows[1]
    output += [8, 9]  # its row was given up, and is computed again in two parts
    worker.read(states(0, 0, 0), [states(1, 2, 30)], step(([1, 2], 0, 3)))
    assert channel.empty()
    worker.read(states(0, 0), [states(40, 50)], step(([1, 2], 3, 5)))
    assert heard(channel) == [AnswerRead("watched", 2, 50)]


def test_rows_with_an_eps_are_bent_and_no_other(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.rows |= {0: new("plain", 1, 5), 1: new("steered", 1, 7, eps=1.0)}
    assert worker.steer(states(4, 14)).tolist() == [[4], [28]]


def test_warming_up_reads_nothing_and_other_rows_than_known_are_an_error(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.read(states(4, 5), [], step(([1], 0, 2)))
    assert worker.steer(states(4)).equal(states(4))
    assert channel.empty()
    worker.rows[0] = new("alone", 2)
    with pytest.raises(RuntimeError, match="2 rows, and its adapter knows 1"):
        worker.steer(states(4, 5))
    with pytest.raises(RuntimeError, match="2 rows, and its adapter knows 1"):
        worker.read(states(4, 5), [], step(([1], 0, 1), ([2], 0, 1)))


def test_blocks_of_another_size_than_told_are_an_error(channel: SimpleQueue[Read]) -> None:
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    worker.rows[0] = new("a", 6)
    with pytest.raises(RuntimeError, match="do not lie where vLLM has put a"):
        worker.read(states(*range(6)), [], step(([3, 1], 0, 6))._replace(block_tokens=8))


def test_what_cannot_be_read_is_no_number(channel: SimpleQueue[Read], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is flagged, where nothing at all would fail the request."""
    worker = Worker(as_any(Guard(DEPTH)), DEPTH, channel)
    monkeypatch.setattr(Guard, "read", lambda *_: 1 / 0)
    worker.rows[0] = new("a", 2)
    worker.read(states(4, 5), [], step(([1], 0, 2)))
    (notes,) = prompts(channel).values()
    assert torch.tensor(notes).isnan().all()
