"""Collecting states: one prefill per prompt gives every layer's last-prompt-token state, streamed to disk.

Nothing is generated and nothing cached, the blocks after the last needed layer do not run, and prompts about the same
images read them once. Memory does not grow with the number of prompts. An interrupted collection goes on where it was.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from steering.data.questions import PictureFile, Question
from steering.fitting.offline import batches, forced_states, read_states
from steering.fitting.stages import Chunks

CHUNK = 128  # prompts per file
SHARING = 8  # prompts about the same images, or none, that are read in one row, at most

NOT_FINITE = "holds values that are no numbers"

Groups = Sequence[Sequence[Question]]  # each of questions about the same images
Work = Callable[[Backbone, Groups], Tensor]
Tick = Callable[[int], None]  # called with the number of prompts that are done
Bar = Callable[[str, int], Tick]  # of a piece of work, by its name and how much of it there is

T = TypeVar("T")


def collect_states(
    backbones: Sequence[Backbone], questions: Sequence[Question], layers: Sequence[int], folder: Path, tick: Tick
) -> Chunks:
    """States `[N, layers, d]` of all prompts, in pieces under `folder`; one backbone per device shares the work."""

    def work(backbone: Backbone, groups: Groups) -> Tensor:
        with stopping_after(backbone, max(layers)):
            return read_states(backbone, groups, layers)

    return _collect(backbones, questions, folder, tick, work, layers, sharing=SHARING)


def collect_forced(
    backbones: Sequence[Backbone], questions: Sequence[Question], ids: Sequence[int], folder: Path, tick: Tick
) -> Chunks:
    """Hidden states `[N, T, d]` in the places that predict `ids` `[T]`, teacher-forced after each prompt."""

    def work(backbone: Backbone, groups: Groups) -> Tensor:
        return forced_states(backbone, [question for group in groups for question in group], ids)

    last = [backbones[0].info.num_layers] * len(ids)
    return _collect(backbones, questions, folder, tick, work, last, sharing=1)


class StateError(ValueError):
    """The state of one prompt holds values that are no numbers; `place` is the prompt's index, `layer` the layer."""

    def __init__(self, place: int, layer: int) -> None:
        super().__init__(f"the state of prompt {place} at layer {layer} {NOT_FINITE}")
        self.place = place
        self.layer = layer


def check_finite(states: Tensor, start: int, layers: Sequence[int]) -> None:
    """Raise StateError for states `[n, layers, d]` of the prompts from index `start` on."""
    wrong = (~states.isfinite()).any(-1).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise StateError(start + row, layers[column])


def _collect(
    backbones: Sequence[Backbone],
    questions: Sequence[Question],
    folder: Path,
    tick: Tick,
    work: Work,
    layers: Sequence[int],  # of the states' second dimension
    *,
    sharing: int,
) -> Chunks:
    def piece(backbone: Backbone, number: int, chunk: Sequence[Question]) -> dict[str, Tensor]:
        states = _chunk(backbone, chunk, tick, work, sharing)
        check_finite(states, number * CHUNK, layers)
        return {"x": states}

    chunks = Chunks(folder)
    share_chunks(backbones, chunks, questions, piece, tick)
    return chunks


def share_chunks(
    backbones: Sequence[Backbone],
    chunks: Chunks,
    things: Sequence[T],
    piece: Callable[[Backbone, int, Sequence[T]], Mapping[str, Tensor]],
    tick: Tick,
) -> None:
    """Make the pieces that are not there yet, of CHUNK things each; one backbone per device shares the work.

    `piece`: of a backbone, the piece's number and its things. `tick` is told of those that are there.
    """
    todo: queue.SimpleQueue[tuple[int, Sequence[T]]] = queue.SimpleQueue()
    for number, chunk in enumerate(batches(things, CHUNK)):
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
            chunks.put(number, piece(backbone, number, chunk))

    if len(backbones) == 1:
        worker(backbones[0])
    else:
        with ThreadPoolExecutor(len(backbones)) as pool:
            list(pool.map(worker, backbones))


def _chunk(backbone: Backbone, chunk: Sequence[Question], tick: Tick, work: Work, sharing: int) -> Tensor:
    """One piece, in batches of like length, so that little is padded."""
    groups = _about_the_same(chunk, sharing)
    found: list[Tensor] = []
    for batch in batches(groups, backbone.max_rows):
        found.append(work(backbone, [[chunk[place] for place in group] for group in batch]))
        tick(sum(map(len, batch)))
    states = torch.cat(found)
    order = torch.tensor([place for group in groups for place in group])
    return torch.empty_like(states).index_copy_(0, order, states)


def _about_the_same(chunk: Sequence[Question], most: int) -> list[Sequence[int]]:
    """Places of the questions, grouped by their images; of like length one after the other."""
    places: dict[Hashable, list[int]] = {}
    for place in sorted(range(len(chunk)), key=lambda place: len(chunk[place].text)):
        images = tuple(image if isinstance(image, PictureFile) else id(image) for image in chunk[place].images)
        places.setdefault(images, []).append(place)
    groups = [group for about in places.values() for group in batches(about, most)]
    return sorted(groups, key=lambda group: (len(chunk[group[0]].images), sum(len(chunk[at].text) for at in group)))


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
