"""The guard inside vLLM's worker: it reads tokens and bends rows, and decides nothing. Knows tensors, not vLLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.sampling import constrained
from server.engine.answers import read_answers
from steering.guard import Guard

logger = logging.getLogger(__name__)

READ_TOGETHER = 64  # tokens: a few take as long to read as these

# In the `extra_args` of a run's sampling parameters.
RUN = "autosteer_run"
EPS = "autosteer_eps"
WATCHED = "autosteer_watched"


class PromptRead(NamedTuple):
    """What was read of all tokens of a run's prompt, `[T, width]`.

    `seconds`: what reading its last step took, all rows together; on a GPU, to launch it.
    """

    run: str
    notes: Tensor
    seconds: float = 0.0


class AnswerRead(NamedTuple):
    """What was read of a token of a run's answer; the first has place 0."""

    run: str
    place: int
    value: float


Read = PromptRead | AnswerRead


@dataclass(frozen=True)
class Row:
    """A row of vLLM's batch. `output`: as many as its answer has tokens so far; V1's own list, which grows."""

    run: str
    eps: float
    watched: bool
    prompt_tokens: int
    output: Sized


def row_of(extra_args: Mapping[str, Any] | None, prompt_tokens: int, output: Sized) -> Row:
    """The row of a run by what its sampling parameters carry; of one that is not ours where they carry nothing."""
    found = extra_args or {}
    return Row(found.get(RUN, ""), found.get(EPS, 0.0), found.get(WATCHED, False), prompt_tokens, output)


class Step(NamedTuple):
    """Where the tokens of one step belong.

    Of each row: `ends`, the place in the step behind its last token, and `lengths`, how many of its tokens are computed
    with this step. `slots` `[T]`: each token's place in the cache. `blocks` `[B, N]`: each row's blocks of
    `block_tokens`.
    """

    ends: Sequence[int]
    lengths: Sequence[int]
    slots: Tensor
    blocks: Tensor
    block_tokens: int


class _Unread(NamedTuple):
    """Tokens of a step that wait to be read: their places in the cache `[T]`, their states `[T, layers, d]`."""

    slots: Tensor
    states: Tensor


def drained(channel: SimpleQueue[Read]) -> list[Read]:
    """Take out all that is in a channel, in order."""
    found: list[Read] = []
    while True:
        try:
            found.append(channel.get_nowait())
        except Empty:
            return found


class Worker:
    """What the guard does with each step.

    `rows` is kept by the runner's adapter, and empty while vLLM warms up. What is read of a token is kept by its place
    in the cache, so that it is known as long as the token is. Of a whole prompt it is put into `channel` with the step
    that computes its last token; so is what is read of each token of an answer that is watched. Until there is such a
    prompt, tokens wait to be read, so that a step with one of each answer takes no longer for it. `channel` None:
    another rank reads.
    """

    def __init__(self, guard: Guard | None, depth: int, channel: SimpleQueue[Read] | None) -> None:
        self.rows: dict[int, Row] = {}
        self.masks: Mapping[str, bytes] = {}  # of runs that have a grammar: what it allows in the next step
        # The layers whose states the decoder gives beside its output, which is the last layer's; ascending.
        self.extra_layers = tuple(sorted({*_layers(guard)} - {depth}))
        self._guard = guard
        self._depth = depth
        self._channel = channel
        self._unread: list[_Unread] = []
        self._notes = torch.empty(0, 0 if guard is None else guard.width)  # by slot; NaN where nothing was read

    @torch.inference_mode()
    def read(self, hidden: Tensor, extra: Sequence[Tensor], step: Step) -> None:
        """Read a step's tokens, of their states `[T, d]` after the last layer, and at the `extra_layers`."""
        guard, channel = self._guard, self._channel
        if guard is None or channel is None or not self.rows:
            return
        self._check(len(step.ends))
        began = perf_counter()
        count = step.ends[-1]
        by_layer = dict(zip((*self.extra_layers, self._depth), (*extra, hidden), strict=True))
        self._unread.append(_Unread(step.slots[:count].clone(), _side_by_side(by_layer, guard.layers, slice(count))))
        found = [(place, row) for place, row in self.rows.items() if not row.output]
        prompts = [(place, row) for place, row in found if step.lengths[place] == row.prompt_tokens]
        if prompts or sum(len(each.slots) for each in self._unread) >= READ_TOGETHER:
            self._read_all(guard)
        told = [(row.run, self._notes_of(place, row, step)) for place, row in prompts]
        seconds = perf_counter() - began
        for run, of_prompt in told:
            channel.put(PromptRead(run, of_prompt, seconds))
        for answer in self._read_answers(guard, by_layer, step):
            channel.put(answer)

    @torch.inference_mode()
    def steer(self, hidden: Tensor) -> Tensor:
        """Hidden states `[B, d]` of the rows, for the head: those with an eps are bent."""
        if self._guard is None or not self.rows:
            return hidden
        self._check(len(hidden))
        eps = [self.rows[place].eps for place in range(len(hidden))]
        if not any(eps):
            return hidden
        return self._guard.steer(hidden, torch.tensor(eps, device=hidden.device, dtype=hidden.dtype))

    def constrain(self, logits: Tensor) -> Tensor:
        """Logits `[B, V]` of the rows, of which those that have a grammar may go on by nothing else."""
        if not self.rows:
            return logits
        self._check(len(logits))
        return constrained(logits, [self.masks.get(self.rows[place].run) for place in range(len(logits))])

    def _check(self, rows: int) -> None:
        if len(self.rows) != rows:
            raise RuntimeError(f"vLLM computes {rows} rows, and its adapter knows {len(self.rows)}")

    def _read_all(self, guard: Guard) -> None:
        """Read what waits, and keep it in its order: a place may have been given to another token meanwhile."""
        waited, self._unread = self._unread, []
        states = torch.cat([each.states for each in waited])
        try:
            notes = guard.read(states)
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.exception("%d tokens could not be read", len(states))
            notes = states.new_full((len(states), guard.width), torch.nan)  # which is flagged
        for each, read in zip(waited, torch.split(notes, [len(each.slots) for each in waited]), strict=True):
            self._keep(each.slots, read)

    def _keep(self, slots: Tensor, notes: Tensor) -> None:
        needed = int(slots.max()) + 1
        if needed > len(self._notes):
            grown = notes.new_full((max(needed, 2 * len(self._notes)), notes.shape[1]), torch.nan, dtype=torch.float32)
            grown[: len(self._notes)] = self._notes
            self._notes = grown
        self._notes[slots] = notes.float()

    def _notes_of(self, place: int, row: Row, step: Step) -> Tensor:
        """What was read of a row's prompt, now or when its blocks were computed for an earlier one."""
        tokens = torch.arange(row.prompt_tokens, device=step.blocks.device)
        blocks = step.blocks[place][tokens // step.block_tokens].long()
        slots = blocks * step.block_tokens + tokens % step.block_tokens
        if int(slots[-1]) != int(step.slots[step.ends[place] - 1]):
            raise RuntimeError(f"blocks of {step.block_tokens} tokens do not lie where vLLM has put {row.run}")
        return self._notes[slots].cpu()

    def _read_answers(self, guard: Guard, by_layer: Mapping[int, Tensor], step: Step) -> list[AnswerRead]:
        """Read the last token of each answer that is watched, where this step has computed all before the next one."""
        found = [
            (row, step.ends[place] - 1)
            for place, row in self.rows.items()
            if row.watched and row.output and step.lengths[place] == row.prompt_tokens + len(row.output)
        ]
        if guard.answers is None or not found:
            return []
        at = torch.tensor([token for _, token in found], device=step.slots.device)
        values = read_answers(guard.answers, _side_by_side(by_layer, guard.answers.layers, at))[:, 0].tolist()
        return [AnswerRead(row.run, len(row.output) - 1, value) for (row, _), value in zip(found, values, strict=True)]


def _layers(guard: Guard | None) -> list[int]:
    """All that a guard's readers read."""
    if guard is None:
        return []
    return [*guard.layers, *(() if guard.answers is None else guard.answers.layers)]


def _side_by_side(by_layer: Mapping[int, Tensor], layers: Sequence[int], which: slice | Tensor) -> Tensor:
    """The states `[N, layers, d]` of some of the tokens."""
    return torch.stack([by_layer[layer][which] for layer in layers], dim=1)
