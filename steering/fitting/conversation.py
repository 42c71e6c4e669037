"""The steps that fit and calibrate a reader of whole conversations, each one's work in the folder of its stage.

Its probes are fitted on states of the train rows alone and in surroundings. Its scales and thresholds are made of what
it reads of fresh rows through the cache, as the server does: what is promised is what is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backbone import Backbone
from models.errors import PromptError
from models.layout import Layout
from models.prompt import Prompt
from steering.categories import CategoryReader
from steering.errors import FitError
from steering.fitting.categories import Kinds
from steering.fitting.collect import CHUNK, Bar, check_finite, share_chunks, stopping_after
from steering.fitting.dataset import Dataset
from steering.fitting.offline import batches, prompt_of
from steering.fitting.own_words import own_words
from steering.fitting.probes import fit_gaussians, fit_highest, weights_of
from steering.fitting.spans import UNKNOWN, labels_of, place_of
from steering.fitting.stages import Chunks, save_json, save_state
from steering.fitting.surround import ALONE, Row
from steering.prober import Prober
from steering.readers import WINDOW, Conversation, LastToken, Run, said_and_told
from steering.shadow import Beside

WORDS = "words.json"
STRIDE = WINDOW // 2  # between the windows that are fitted on
SPREAD = 8  # layers that are read side by side lie an 8th of the depth apart


def spread_around(layer: int, num_layers: int) -> tuple[int, ...]:
    """Three layers about one, which are read side by side."""
    step = max(1, round(num_layers / SPREAD))
    return tuple(at for at in (layer - step, layer, layer + step) if 0 < at <= num_layers)


class ConversationSteps:
    """The work of the stages. `layers`: those that are read."""

    def __init__(self, backbones: Sequence[Backbone], dataset: Dataset, layers: Sequence[int], bar: Bar) -> None:
        self._backbones, self._dataset, self._layers, self._bar = backbones, dataset, list(layers), bar

    def words(self, seed: int, count: int, folder: Path) -> None:
        """Keep `count` texts that the model says in a user's place."""
        save_json(folder / WORDS, own_words(self._backbones[0], seed, self._bar("words", count), count))

    def collect(self, rows: Sequence[Row], folder: Path) -> None:
        """Keep the states of rows at every turn's end, and their means over windows."""
        tick = self._bar("conversations", len(rows))

        def work(backbone: Backbone, number: int, chunk: Sequence[Row]) -> dict[str, Tensor]:
            with stopping_after(backbone, max(self._layers)):
                found = self._read_chunk(backbone, chunk)
            for name in ("ends", "windows"):
                check_finite(found[name], number * CHUNK, self._layers)
            tick(len(chunk))
            return found

        share_chunks(self._backbones, Chunks(folder), rows, work, tick)

    def _read_chunk(self, backbone: Backbone, rows: Sequence[Row]) -> dict[str, Tensor]:
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for places in batches(_by_length(rows), backbone.max_rows):
            prompts = [self._prompt(backbone, rows[at]) for at in places]
            with backbone.tap(self._layers) as tap:
                backbone.prefill_uncached([[prompt] for prompt in prompts], last=None)
                states = torch.split(tap.states, [len(prompt.ids) for prompt in prompts])
            for at, prompt, of in zip(places, prompts, states, strict=True):
                layout = backbone.inputs.layout(prompt.ids)
                end = layout.ends[min(rows[at].turn, len(layout.ends) - 1)]
                # Of a harmful row that end alone is harmful for certain; of a harmless one all are harmless.
                ends = [end] if self._dataset.labels[rows[at].place] == 1 else list(layout.ends)
                windows = _strided(layout)
                means = torch.stack([of[begin:stop].float().mean(0) for begin, stop in windows])
                found[at] = of[ends].cpu(), means.to(of.dtype).cpu(), self._known(backbone, rows[at], prompt, windows)
        inside = [found[at] for at in range(len(rows))]
        return {
            "ends": torch.cat([ends for ends, _, _ in inside]),
            "windows": torch.cat([windows for _, windows, _ in inside]),
            "known": torch.cat([known for _, _, known in inside]),
            "counts": torch.tensor([[len(ends), len(windows)] for ends, windows, _ in inside]),
        }

    def _known(self, backbone: Backbone, row: Row, prompt: Prompt, windows: Sequence[Run]) -> Tensor:
        """The labels of a row's windows `[W]`: of a harmful one in a surrounding, its own words are harmful."""
        asked, harmful = self._dataset.questions[row.place], int(self._dataset.labels[row.place])
        if not harmful or row.surrounding == ALONE:
            return torch.full((len(windows),), harmful, dtype=torch.int8)
        place = None if asked.images else place_of(backbone.tokenizer, prompt.ids, asked.text)
        return torch.full((len(windows),), UNKNOWN, dtype=torch.int8) if place is None else labels_of(windows, place)

    def fit(self, rows: Sequence[Row], collected: Path, folder: Path) -> None:
        """Fit both probes on the collected rows."""
        places = [row.place for row in rows]
        probes = fit_both(*collected_states(collected), self._dataset.labels[places], self._dataset.hard(places))
        save_state(folder / "probes.safetensors", probes)

    def fit_categories(self, rows: Sequence[Row], kinds: Kinds, collected: Path, folder: Path) -> None:
        """Fit the reader of categories on the ends of the collected rows."""
        owners: list[int] = []
        ends: list[Tensor] = []
        for chunk in Chunks(collected).tensors():
            counts = chunk["counts"][:, 0].tolist()
            owners += [row.place for row, count in zip(rows[len(ends) :], counts, strict=False) for _ in range(count)]
            ends += torch.split(chunk["ends"].flatten(1), counts)
        found = kinds.fit(torch.cat(ends), owners)
        save_state(folder / "categories.safetensors", {"weight": found.weight, "bias": found.bias})

    def read(
        self,
        rows: Sequence[Row],
        reader: Conversation,
        categories: CategoryReader | None,
        prober: Prober,
        layer: int,
        folder: Path,
    ) -> None:
        """Keep what a server would read of rows, and the logit of the prober at the last token of `layer` beside it.

        `raw` `[R, 9]`: the highest end, the highest windows, the prober's logit; tokens, whether there is an image,
        whether anything is told, and answered; the highest windows of what is said, and of what is told.
        """
        backbone = self._backbones[0]
        own = _Served([reader, *([] if categories is None else [categories])], self._layers)
        tick = self._bar("calibration", len(rows))
        found: dict[int, list[float]] = {}
        kinds: dict[int, NDArray[np.float64]] = {}
        with _reading(backbone, Beside(own, _Served([LastToken(prober)], [layer]))):
            for places in batches(_by_length(rows), backbone.max_rows):
                prompts = [self._prompt(backbone, rows[at]) for at in places]
                for at, prompt, notes in zip(places, prompts, notes_of(backbone, prompts), strict=True):
                    layout = backbone.inputs.layout(prompt.ids)
                    raw = reader.raw(notes[:, : reader.width], layout)
                    runs = said_and_told(layout.spoken, layout.told)
                    parts = [reader.highest(notes[:, 1], part, layout) for part in runs]
                    about = layout.tokens, layout.has_image, bool(layout.told), layout.answered
                    found[at] = [*raw, float(notes[-1, -1]), *about, *parts]
                    if categories is not None:
                        kinds[at] = categories.raw(notes[list(layout.ends), reader.width : -1])
                tick(len(places))
        kept = torch.tensor([found[at] for at in range(len(rows))], dtype=torch.float64)
        if len(wrong := (~kept.isfinite()).any(1).nonzero()):
            raise FitError(f"{self._dataset.name(rows[int(wrong[0])].place)}: what is read of it is no number")
        told = {"categories": torch.tensor(np.array([kinds[at] for at in range(len(rows))]))} if kinds else {}
        save_state(folder / "raw.safetensors", {"raw": kept, **told})

    def _prompt(self, backbone: Backbone, row: Row) -> Prompt:
        """The prompt of a row; alone, where the model's template or context has no room for what surrounds it."""
        try:
            return prompt_of(backbone, row.question)
        except PromptError:
            return prompt_of(backbone, self._dataset.questions[row.place])


def _by_length(rows: Sequence[Row]) -> list[int]:
    """Places of the rows, those of like length one after the other: little of a batch is padded."""
    return sorted(range(len(rows)), key=lambda at: len(rows[at].question.transcript))


def collected_states(folder: Path) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The states of each collected row at its ends, its means over windows, `[n, D]` each, and the windows' labels."""
    ends: list[Tensor] = []
    windows: list[Tensor] = []
    known: list[Tensor] = []
    for chunk in Chunks(folder).tensors():
        of_ends, of_windows = chunk["counts"].T.tolist()
        ends += torch.split(chunk["ends"].flatten(1), of_ends)
        windows += torch.split(chunk["windows"].flatten(1), of_windows)
        known += torch.split(chunk["known"], of_windows)
    return ends, windows, known


def fit_both(
    ends: Sequence[Tensor], windows: Sequence[Tensor], known: Sequence[Tensor], labels: Tensor, hard: Tensor
) -> dict[str, Tensor]:
    """The probes of ends and of windows, as `weight` `[2, D]` and `bias` `[2]`, of what `collected_states` gives.

    Labels `[N]`, 1 harmful; `hard` `[N]`, bool. Raises FitError.
    """
    owners = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor([len(each) for each in ends]))
    at_ends = fit_gaussians(torch.cat([*ends]), labels[owners], weights_of(labels[owners], hard[owners]))
    both = at_ends, fit_highest(windows, known, labels, hard)
    weight, bias = torch.stack([each.weight for each in both]), torch.stack([each.bias.reshape(()) for each in both])
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise FitError("the reader of conversations is no number: it did not converge")
    return {"weight": weight, "bias": bias}


@dataclass(frozen=True)
class _Served:
    """Readers of the same layers, side by side, as a backbone takes them."""

    readers: Sequence[Conversation | CategoryReader | LastToken]
    layers: Sequence[int]

    @property
    def width(self) -> int:
        return sum(reader.width for reader in self.readers)

    def read(self, states: Tensor) -> Tensor:
        return torch.cat([reader.read(states) for reader in self.readers], dim=1)


@contextmanager
def _reading(backbone: Backbone, reader: Beside) -> Iterator[None]:
    """Within this context prompts are read, and no blocks run that this does not need.

    What is cached then lacks the later blocks, and is forgotten at the end.
    """
    with stopping_after(backbone, max(reader.layers)):
        backbone.read_prompts(reader)
        try:
            yield
        finally:
            backbone.read_prompts(None)


def notes_of(backbone: Backbone, prompts: Sequence[Prompt]) -> list[NDArray[np.float64]]:
    """What the backbone's reader reads of prompts, through the cache, as a server does: `[T, width]` each."""
    with ExitStack() as opened:
        rows = []
        for prompt in prompts:
            rows.append(row := backbone.open_row(prompt, 0))
            opened.callback(backbone.close_row, row)
        backbone.prefill(rows)
        lengths = [len(prompt.ids) for prompt in prompts]
        return [backbone.notes(row, length).double().cpu().numpy() for row, length in zip(rows, lengths, strict=True)]


def _strided(layout: Layout) -> list[Run]:
    """Windows of every spoken run, half a window apart, and the run's last."""
    found = []
    for begin, end in layout.spoken or [(0, layout.tokens)]:
        size = min(WINDOW, end - begin)
        starts = {*range(begin, end - size + 1, STRIDE), end - size}
        found += [(start, start + size) for start in sorted(starts)]
    return found
