"""Collecting states: one prefill per prompt gives every layer's last-prompt-token state, streamed to disk.

Nothing is generated, the blocks after the last needed layer do not run, and memory does not grow with the number of
prompts. An interrupted collection goes on where it was.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from steering.offline import Question, batches, forced_states, prompt_states
from steering.stages import Chunks

CHUNK = 128  # prompts per file

Tick = Callable[[int], None]  # called with the number of prompts that are done


def collect_states(
    backbones: Sequence[Backbone], questions: Sequence[Question], layers: Sequence[int], folder: Path, tick: Tick
) -> Chunks:
    """States `[N, layers, d]` of all prompts, in pieces under `folder`; one backbone per device shares the work."""

    def work(backbone: Backbone, group: Sequence[Question]) -> Tensor:
        with stopping_after(backbone, max(layers)):
            return prompt_states(backbone, group, layers)

    return _collect(backbones, questions, folder, tick, work)


def collect_forced(
    backbones: Sequence[Backbone], questions: Sequence[Question], ids: Sequence[int], folder: Path, tick: Tick
) -> Chunks:
    """Hidden states `[N, T, d]` in the places that predict `ids` `[T]`, teacher-forced after each prompt."""
    return _collect(backbones, questions, folder, tick, lambda backbone, group: forced_states(backbone, group, ids))


def _collect(
    backbones: Sequence[Backbone],
    questions: Sequence[Question],
    folder: Path,
    tick: Tick,
    work: Callable[[Backbone, Sequence[Question]], Tensor],
) -> Chunks:
    chunks = Chunks(folder)
    todo: queue.SimpleQueue[tuple[int, Sequence[Question]]] = queue.SimpleQueue()
    for number, chunk in enumerate(batches(questions, CHUNK)):
        if chunks.has(number):
            tick(len(chunk))
        else:
            todo.put((number, chunk))

    def worker(backbone: Backbone) -> None:
        while not todo.empty():
            try:
                number, chunk = todo.get_nowait()
            except queue.Empty:  # another device took the last one
                return
            chunks.put(number, _chunk(backbone, chunk, work, tick))

    if len(backbones) == 1:
        worker(backbones[0])
    else:
        with ThreadPoolExecutor(len(backbones)) as pool:
            list(pool.map(worker, backbones))
    return chunks


def _chunk(
    backbone: Backbone,
    chunk: Sequence[Question],
    work: Callable[[Backbone, Sequence[Question]], Tensor],
    tick: Tick,
) -> Tensor:
    """One piece, in batches of prompts of like length, so that little is padded."""
    order = sorted(range(len(chunk)), key=lambda place: (len(chunk[place].images), len(chunk[place].text), place))
    found: list[Tensor] = []
    for group in batches([chunk[place] for place in order], backbone.max_rows):
        found.append(work(backbone, group))
        tick(len(group))
    states = torch.cat(found)
    return torch.empty_like(states).index_copy_(0, torch.tensor(order), states)


@contextmanager
def stopping_after(backbone: Backbone, layer: int) -> Iterator[None]:
    """Within this context a prefill runs no block after the one that follows `layer`; only taps are of use then."""
    decoder = backbone._decoder
    blocks: nn.ModuleList = decoder.layers
    # One block more than is needed, because a tap takes the last one's output from behind the final norm.
    keep = layer + 1
    if keep >= len(blocks):
        yield
        return
    decoder.layers = blocks[:keep]
    try:
        yield
    finally:
        decoder.layers = blocks
