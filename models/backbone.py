"""A loaded model: batched passes over the rows that are open.

Token ids and processor tensors in, hidden states and logits out. The modules are the family's own stock ones; what is
ours is the batching, the positions, the cache and the attention over it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.attention import MixedPass, Pass, Span, StreamPass, make_streams
from models.blocks import block_keys
from models.cache import OutOfBlocks, PagedCache
from models.families import Family
from models.graphs import DecodeGraphs
from models.images import Eyes, ImageMismatch
from models.info import BackboneInfo
from models.inputs import InputBuilder, Prompt
from models.packing import Packed
from models.rows import Placed, Row, Steps, spans_of
from models.tap import Tap

__all__ = ["Backbone", "BackboneInfo", "OutOfRows", "Row"]

T = TypeVar("T")

_PADDING_LIMIT = 64  # tokens of padding per row that are not worth a pass of their own


class OutOfRows(RuntimeError):
    """No room for one more row or token: too many rows are open, or their blocks are used up."""


class Backbone:
    """A frozen model with its rows. Used by one thread; `inputs` may be used by many."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a transformers model with a head
        family: Family,
        inputs: InputBuilder,
        tokenizer: PreTrainedTokenizerBase,
        info: BackboneInfo,
        image_token_id: int,
        max_rows: int,
        cache: PagedCache,
        image_memory_bytes: int,
    ) -> None:
        self.info = info
        self.inputs = inputs
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.cache = cache
        self._body: Any = model.model
        self._decoder: Any = model.get_decoder()
        self._embed: Any = model.get_input_embeddings()
        self._head: Any = model.get_output_embeddings()
        self._family = family
        self._image_token_id = image_token_id
        self._eyes = Eyes(self._body.get_image_features, family, info.device, info.dtype, image_memory_bytes)
        self._taps: list[Tap] = []
        self._steps: Steps | None = None
        self._graphs: DecodeGraphs | None = None
        self._cache_argument = (
            "cache" if "cache" in inspect.signature(self._decoder.forward).parameters else "past_key_values"
        )
        self._no_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=info.device)  # or the model makes one
        # Prompts may share a row where attention is plainly causal and a token's place is its number.
        self._shares = not (family.mrope or family.token_types or _windowed(self._decoder.config))
        banned = family.banned(model) if family.banned else ()
        self._banned = torch.tensor(list(banned), dtype=torch.long, device=info.device)

    @property
    def open_rows(self) -> int:
        """Rows that are open."""
        return self.cache.rows

    @property
    def cache_usage(self) -> float:
        """Share of the cache that open rows hold, 0 to 1."""
        return self.cache.usage

    # rows ------------------------------------------------------------------------------------------------------

    def open_row(self, prompt: Prompt, max_tokens: int, generated: Sequence[int] = ()) -> Row:
        """A row for a prompt and up to `max_tokens` tokens after it, some of which may have been `generated` before.

        What the cache knows of the prompt is not computed again, but for its last token. Raises OutOfRows.
        """
        assert prompt.ids, "a prompt without tokens"
        needed = len(prompt.ids) + max_tokens
        if needed > self.info.context_length:
            raise OutOfRows(
                f"{len(prompt.ids)} prompt tokens and {max_tokens} more pass the context of {self.info.context_length}"
            )
        if self.cache.blocks_for(needed) > self.cache.pool.count:
            raise OutOfRows(
                f"{len(prompt.ids)} prompt tokens and {max_tokens} more pass the cache of "
                f"{self.cache.pool.count * self.cache.block_size}; it needs more memory"
            )
        if self.cache.rows >= self.max_rows:
            raise OutOfRows(f"{self.cache.rows} rows are open, the limit is {self.max_rows}")
        tokens = [*prompt.ids, *generated]
        pictures = _placed(prompt, self._image_token_id)
        marks = [(each.places[0], each.picture.digest) for each in pictures if each.places]
        keys = block_keys(prompt.ids, marks, self.cache.block_size)
        known = min(self.cache.pool.known(keys), (len(prompt.ids) - 1) // self.cache.block_size)
        try:
            row = Row(prompt, tokens, self.cache.open(keys, known))
        except OutOfBlocks as error:
            raise OutOfRows(str(error)) from error
        row.length = len(row.table.blocks) * self.cache.block_size
        row._pictures = pictures
        self._place(row)
        return row

    def has_room(self, tokens: int) -> bool:
        """Whether one more row could hold so many tokens, and each open one some more."""
        return self.cache.pool.available >= self.cache.blocks_for(tokens) + self.cache.rows

    def reserve(self, row: Row, count: int) -> None:
        """Make sure of room for the next `count` tokens of a row. Raises OutOfRows, and changes nothing."""
        try:
            self.cache.reserve(row.table, row.length + count)
        except OutOfBlocks as error:
            raise OutOfRows(str(error)) from error

    def chunk(self, row: Row, count: int) -> int:
        """How many tokens, of about `count`, a pass may take of a row: images that see all of themselves stay whole."""
        count = min(count, row.pending)
        end = row.length + count
        if row._images is None or end >= len(row._images) or row._images[end] < 0:
            return count
        inside = row._images[row.length : end] == row._images[end]
        before = count - int(inside.sum())
        rest = int((row._images[end:] == row._images[end]).sum())
        return before if before > 0 else count + rest

    def close_row(self, row: Row) -> None:
        """Free the row. Closing a closed row does nothing."""
        if row._table is not None:
            self.cache.close(row._table)
        row._table = row._prompt = None
        row._pictures = []
        row.length = 0

    def forget(self) -> None:
        """Remember nothing of earlier prompts and images."""
        self.cache.pool.forget_all()
        self._eyes.forget()

    @torch.inference_mode()
    def capture(self) -> None:
        """Record steps of each number of rows as CUDA graphs; from then on steps replay them. Elsewhere nothing."""
        if self.info.device.type == "cuda":
            self._graphs = DecodeGraphs(self.cache, self._stream_pass, self.max_rows, self.info, self._family.mrope)
            self._graphs.capture()

    # passes ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        """Compute the next `counts` tokens of each row, all in one pass -> hidden state `[B, d]` of each one's last.

        The state is that after the last norm. Raises OutOfRows before anything is computed.
        """
        assert len(rows) == len(counts) > 0, f"{len(rows)} rows, {len(counts)} counts"
        for row, count in zip(rows, counts, strict=True):
            self.reserve(row, count)
        if self.cache.compact():
            self._steps = None
        if all(count == 1 and row.length for row, count in zip(rows, counts, strict=True)):
            hidden = self._stream(rows)
        else:
            hidden = self._mix(rows, counts)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
            if row._prompt is not None:
                self._computed(row, row._prompt)
        return hidden

    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Compute all that is pending of each row -> hidden state `[B, d]` of each one's last token."""
        return self.forward(rows, [row.pending for row in rows])

    def decode(self, rows: Sequence[Row], ids: Tensor) -> Tensor:
        """Append one token to each row and compute it: ids `[B]` -> hidden `[B, d]`."""
        assert len(rows) == len(ids), f"{len(rows)} rows, {len(ids)} ids"
        for row, token in zip(rows, ids.tolist(), strict=True):
            row.append(token)
        return self.prefill(rows)

    @torch.no_grad()
    def read(self, groups: Sequence[Sequence[Prompt]], last: int = 1) -> None:
        """Run prompts for the taps alone, group by group: without cache and rows, `max_rows` groups in a pass.

        The prompts of a group have the same images, or none; where the family allows it, what they begin with runs
        once. The taps get the states of the `last` tokens of each prompt, one after the other.
        """
        image, share = self._image_token_id, self._shares
        packs = [pack for group in groups for pack in Packed.of(group, image, share=share, last=last)]
        similar = _similar([len(pack.ids) for pack in packs])
        passes = [some[at : at + self.max_rows] for some in similar for at in range(0, len(some), self.max_rows)]
        starts = [0]
        for pack in packs:
            starts.append(starts[-1] + len(pack.ends))
        order = [at for group in passes for place in group for at in range(starts[place], starts[place + 1])]
        self._passes([partial(self._read, [packs[place] for place in group]) for group in passes], order)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[B, V]` of hidden states `[B, d]`: the model's head, and what the family does after it."""
        logits: Tensor = self._head(hidden)
        if len(self._banned):
            logits[:, self._banned] = torch.finfo(logits.dtype).min
        return logits

    @contextmanager
    def tap(self, layer: int | Sequence[int]) -> Iterator[Tap]:
        """Within this context each pass leaves the layer's state at each row's last token in `tap.states`.

        `[B, d]`, in the order of the rows; for several layers `[B, layers, d]`.
        """
        tap = Tap(self._decoder, layer)
        self._taps.append(tap)
        try:
            yield tap
        finally:
            self._taps.remove(tap)

    def _stream(self, rows: Sequence[Row]) -> Tensor:
        """A pass over one token of each row."""
        steps = self._steps
        if steps is not None and steps.go_on(rows):
            steps.advance()
        else:
            self._steps = steps = Steps(self.cache, rows, self._positions(rows, spans_of(rows, [1] * len(rows))))
        tokens = [row.tokens[row.length] for row in rows]
        pictured = any(row._pictures for row in rows)
        if self._graphs is not None and not self._taps and not pictured:
            return self._graphs.step(steps, tokens)
        embedded = self._embed(torch.tensor([tokens], device=self.info.device))
        deep = self._show(embedded, rows, spans_of(rows, [1] * len(rows))) if pictured else {}
        return self._run(embedded, steps.positions, StreamPass(self.cache, steps.slots, steps.streams), None, deep)

    def _stream_pass(self, ids: Tensor, positions: Tensor, paged: Pass) -> Tensor:
        return self._run(self._embed(ids), positions, paged, None, {})

    def _mix(self, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        """A pass over any tokens: rows that add one come first, then chunks, equally long ones side by side."""
        spans = spans_of(rows, counts)
        order = sorted(range(len(rows)), key=lambda at: (not spans[at].streams, spans[at].start > 0, spans[at].count))
        ordered = [spans[place] for place in order]
        rows = [rows[place] for place in order]
        streams = [span for span in ordered if span.streams]
        tables, ends = [span.table for span in streams], [span.end for span in streams]
        slots = [slot for span in ordered for slot in self.cache.slots(span.table, span.start, span.end)]
        paged = MixedPass(
            self.cache,
            self.cache.targets(slots),
            make_streams(self.cache, tables, ends) if streams else None,
            ordered[len(streams) :],
        )
        ids = [token for row, span in zip(rows, ordered, strict=True) for token in row.tokens[span.start : span.end]]
        embedded = self._embed(torch.tensor([ids], device=self.info.device))
        deep = self._show(embedded, rows, ordered)
        last, end = [0] * len(rows), 0
        for place, span in zip(order, ordered, strict=True):
            end += span.count
            last[place] = end - 1
        return self._run(embedded, self._positions(rows, ordered), paged, torch.tensor(last), deep)

    def _run(
        self, embedded: Tensor, positions: Tensor, paged: Pass, last: Tensor | None, deep: Mapping[str, Any]
    ) -> Tensor:
        """The decoder on embeddings `[1, N, d]`; the states at the places `last`, or at all."""
        if last is not None:
            last = last.to(self.info.device)
        with ExitStack() as taps:
            for tap in self._taps:
                read = torch.arange(embedded.shape[1], device=self.info.device) if last is None else last
                taps.enter_context(tap.at(read, torch.zeros_like(read)))
            output = self._decoder(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask=self._no_mask,
                paged=paged,
                use_cache=True,
                **{self._cache_argument: paged},
                **deep,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if last is None else hidden[last]

    def _positions(self, rows: Sequence[Row], spans: Sequence[Span]) -> Tensor:
        """`[1, N]`, or with M-RoPE `[3, 1, N]`."""
        if not self._family.mrope:
            numbers = [at for span in spans for at in range(span.start, span.end)]
            return torch.tensor([numbers], device=self.info.device)
        parts = []
        for row, span in zip(rows, spans, strict=True):
            known = row._positions
            inside = 0 if known is None else max(0, min(known.shape[1], span.end) - span.start)
            if known is not None and inside:
                parts.append(known[:, span.start : span.start + inside])
            later = torch.arange(span.start + inside, span.end) + row._deltas
            parts.append(later.expand(3, -1))
        return torch.cat(parts, dim=1).to(self.info.device)[:, None]

    def _show(self, embedded: Tensor, rows: Sequence[Row], spans: Sequence[Span]) -> dict[str, Any]:
        """Put what the model sees of images in the place of their tokens; what the decoder takes beside that."""
        shown: list[tuple[int, int, Placed, int]] = []  # from where to where of the pass, of what, from where
        offset = 0
        looked: list[tuple[Placed, Mapping[str, Tensor]]] = []
        for row, span in zip(rows, spans, strict=True):
            if row._prompt is not None:
                runs = _shown(row, span, offset)
                expected = row._prompt.ids[span.start : span.end].count(self._image_token_id)
                if sum(stop - start for start, stop, _, _ in runs) != expected:
                    raise ImageMismatch(f"{expected} image tokens, but not as many of the prompt's images")
                shown += runs
                looked += [
                    (each, row._prompt.features)
                    for each in row._pictures
                    if each.seen is None and each.places and each.places[0] < span.end and each.places[-1] >= span.start
                ]
            offset += span.count
        for (each, _), seen in zip(looked, self._eyes.look([(one.picture, f) for one, f in looked]), strict=True):
            each.seen = seen
        if not shown:
            return {}
        deep: list[Tensor] = []
        for start, stop, each, first in shown:
            assert each.seen is not None, "an image that was not looked at"
            embedded[0, start:stop] = each.seen.features[first : first + stop - start]
            if each.seen.deep is not None:
                deep.append(each.seen.deep[:, first : first + stop - start])
        if not deep:
            return {}
        visible = torch.zeros(embedded.shape[:2], dtype=torch.bool)
        for start, stop, _, _ in shown:
            visible[0, start:stop] = True
        return {
            "visual_pos_masks": visible.to(embedded.device),
            "deepstack_visual_embeds": [*torch.cat(deep, dim=1)],
        }

    def _place(self, row: Row) -> None:
        """What of a row's images matters to where its tokens are and what they see."""
        prompt = row._prompt
        assert prompt is not None, "a new row has its prompt"
        if self._family.token_types is not None and prompt.image_tokens:
            row._images = _image_numbers(prompt.ids, self._image_token_id)
        if self._family.mrope and "image_grid_thw" in prompt.features:
            ids = torch.tensor([prompt.ids])
            positions, deltas = self._body.get_rope_index(
                ids,
                mm_token_type_ids=(ids == self._image_token_id).int(),
                image_grid_thw=prompt.features["image_grid_thw"],
                attention_mask=torch.ones_like(ids),
            )
            row._positions, row._deltas = positions[:, 0], int(deltas[0, 0])

    def _computed(self, row: Row, prompt: Prompt) -> None:
        """Tell the cache what is there now, and drop what is not needed any more."""
        full = min(row.length, len(prompt.ids)) // self.cache.block_size
        self.cache.pool.name(row.table, full)
        if row.length >= len(prompt.ids):
            row._prompt = None
            row._pictures = []

    def _passes(self, passes: Sequence[Callable[[], T]], order: Sequence[int]) -> list[T]:
        """Run one pass after the other; each tap gets the states of all, the i-th of them at place `order[i]`."""
        results: list[T] = []
        tapped: list[list[Tensor]] = [[] for _ in self._taps]
        for run in passes:
            results.append(run())
            for states, tap in zip(tapped, self._taps, strict=True):
                states.append(tap.states)
        for states, tap in zip(tapped, self._taps, strict=True):
            tap.put(_restored(torch.cat(states), order))
        return results

    def _read(self, packs: Sequence[Packed]) -> None:
        """One pass over packed rows, padded on the right."""
        device = self.info.device
        ids, mask = self._padded([pack.ids for pack in packs])
        firsts = [pack.prompts[0] for pack in packs]
        arguments = self._arguments(firsts, ids)
        if any(len(pack.prompts) > 1 for pack in packs):
            positions = Packed.positions(packs)
            arguments["attention_mask"] = Packed.mask(packs).to(device)
        else:
            positions, _ = self._prefill_positions(firsts, ids, mask)
            arguments["attention_mask"] = None if bool(mask.all()) else mask.to(device)
        rows = torch.tensor([row for row, pack in enumerate(packs) for _ in pack.ends], device=device)
        ends = torch.tensor([end for pack in packs for end in pack.ends], device=device)
        with ExitStack() as taps:
            for tap in self._taps:
                taps.enter_context(tap.at(ends, rows))
            self._body(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False, **arguments)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        # Never padded with the image token, whose number must match the images.
        return _padded(sequences, filler=int(self._image_token_id == 0))

    def _arguments(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Any]:
        """What a pass over `ids` takes beside them."""
        arguments: dict[str, Any] = dict(self._eyes.tensors([prompt.features for prompt in prompts]))
        if self._family.token_types is not None:
            arguments[self._family.token_types] = (ids == self._image_token_id).long().to(self.info.device)
        return arguments

    def _prefill_positions(self, prompts: Sequence[Prompt], ids: Tensor, mask: Tensor) -> tuple[Tensor, list[int]]:
        """Positions of the padded prompts, `[B, T]` or with M-RoPE `[3, B, T]`, and each row's rope delta."""
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        if not self._family.mrope:
            return positions, [0] * len(prompts)
        grids = [prompt.features["image_grid_thw"] for prompt in prompts if "image_grid_thw" in prompt.features]
        if not grids:
            return positions.expand(3, *ids.shape), [0] * len(prompts)
        positions, deltas = self._body.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_token_id).int(),
            image_grid_thw=torch.cat(grids),
            attention_mask=mask,
        )
        return positions, [int(delta) for delta in deltas[:, 0]]


def _windowed(text: Any) -> bool:  # noqa: ANN401 - the decoder's config
    """Whether some layer sees only so far back."""
    window = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    return window is not None if layer_types is None else "sliding_attention" in layer_types


def _placed(prompt: Prompt, image_token_id: int) -> list[Placed]:
    """The prompt's pictures with the places of their tokens."""
    if not prompt.pictures:
        return []
    places = [place for place, token in enumerate(prompt.ids) if token == image_token_id]
    placed = []
    for picture in prompt.pictures:
        placed.append(Placed(picture, places[: picture.tokens]))
        places = places[picture.tokens :]
    return placed


def _shown(row: Row, span: Span, offset: int) -> list[tuple[int, int, Placed, int]]:
    """Runs of image tokens in a span: from where to where in the pass, of which picture, from which of its tokens."""
    runs = []
    for each in row._pictures:
        inside = [(at, place) for at, place in enumerate(each.places) if span.start <= place < span.end]
        for _, group in groupby(inside, lambda pair: pair[1] - pair[0]):
            run = [*group]
            start = offset + run[0][1] - span.start
            runs.append((start, start + len(run), each, run[0][0]))
    return runs


def _image_numbers(ids: Sequence[int], image_token_id: int) -> Tensor:
    """The number of the run of image tokens that each token is in, -1 where in none."""
    numbers, number = [], -1
    for is_image, run in groupby(ids, lambda token: token == image_token_id):
        number += is_image
        numbers += [number if is_image else -1] * sum(1 for _ in run)
    return torch.tensor(numbers)


def _restored(batch: Tensor, order: Sequence[int]) -> Tensor:
    """Undo a permutation: row `i` of `batch` belongs at place `order[i]`."""
    if list(order) == list(range(len(order))):
        return batch
    return torch.empty_like(batch).index_copy_(0, torch.tensor(order, device=batch.device), batch)


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows, grouped so that in no group padding is both long and more than half of the longest row."""
    groups: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        wasted = longest - lengths[place]
        if not groups or (wasted > _PADDING_LIMIT and wasted > longest // 2):
            groups.append([])
            longest = lengths[place]
        groups[-1].append(place)
    return groups


def _padded(sequences: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` padded on the right, and the mask of what is not padding."""
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[*ids, *[filler] * (width - len(ids))] for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    return ids, mask
