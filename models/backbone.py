"""A loaded model: batched passes over the rows that are open.

Token ids and processor tensors in, hidden states and logits out. The modules are the family's own stock ones; what is
ours is the batching, the positions, the cache and the attention over it. `Passes` lays out and runs one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.blocks import block_keys
from models.cache import OutOfBlocks, PagedCache
from models.errors import OutOfRows
from models.families import Family
from models.image_tokens import image_numbers, place_pictures, unseen
from models.info import BackboneInfo
from models.inputs import InputBuilder
from models.passes import Keep, Passes
from models.positions import Positions
from models.prompt import Prompt
from models.reading import PromptReader, Reading
from models.rows import Row
from models.tap import Tap
from models.uncached import UncachedPrefill
from models.vision import Encoded, VisionEncoder

__all__ = ["Backbone", "BackboneInfo", "Row"]


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
        self._head: Any = model.get_output_embeddings()
        self._family = family
        self._image_token_id = image_token_id
        tower = self._body.get_image_features if family.sees else None
        self._encoder = VisionEncoder(tower, family, info.device, info.dtype, image_memory_bytes)
        self._positions = Positions(self._body, mrope=family.mrope, image_token_id=image_token_id, device=info.device)
        self._uncached = UncachedPrefill(
            self._body, family, self._encoder, self._positions, image_token_id, info.device, max_rows
        )
        self._passes = Passes(model, info, cache, self._encoder, self._positions, image_token_id)
        self._taps: list[Tap] = []
        self._answers: Tap | None = None
        self._reading: Reading | None = None
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

    def open_row(self, prompt: Prompt, max_tokens: int, generated: Sequence[int] = (), anew: bool = False) -> Row:
        """A row for a prompt and up to `max_tokens` tokens after it, some of which may have been `generated` before.

        What the cache knows of it is not computed again but for its last token, unless `anew`. Raises OutOfRows.
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
        self._check_rows()
        tokens = [*prompt.ids, *generated]
        pictures = place_pictures(prompt, self._image_token_id)
        marks = [(each.places[0], each.picture.digest) for each in pictures if each.places]
        keys = block_keys(prompt.ids, marks, self.cache.block_size)
        known = 0 if anew else min(self.cache.pool.known(keys), (len(prompt.ids) - 1) // self.cache.block_size)
        try:
            row = Row(prompt, tokens, self.cache.open(keys, known))
        except OutOfBlocks as error:
            raise OutOfRows(str(error)) from error
        row.length = len(row.table.blocks) * self.cache.block_size
        row.pictures = pictures
        self._place(row, prompt)
        return row

    def copy_row(self, source: Row, prompt: Prompt, generated: Sequence[int] = ()) -> Row:
        """A row for the prompt that an open row has computed: only its last token is computed again.

        Raises OutOfRows.
        """
        assert source.length >= len(prompt.ids), f"{source.length} of {len(prompt.ids)} prompt tokens are computed"
        self._check_rows()
        tokens = [*prompt.ids, *generated]
        known = min(len(prompt.ids), len(tokens) - 1)
        try:
            table = self.cache.copy(source.table, known)
        except OutOfBlocks as error:
            raise OutOfRows(str(error)) from error
        return source.like(prompt, tokens, table, known, place_pictures(prompt, self._image_token_id))

    def take_over(self, source: Row, prompt: Prompt) -> Row:
        """A row for the prompt of an open row, which ends: what that row has computed of it is kept."""
        known = min(source.length, len(prompt.ids) - 1)
        table = source.close()
        assert table is not None, "the row is closed"
        self.cache.shrink(table, known)
        return source.like(prompt, [*prompt.ids], table, known, place_pictures(prompt, self._image_token_id))

    def _check_rows(self) -> None:
        if self.cache.rows >= self.max_rows:
            raise OutOfRows(f"{self.cache.rows} rows are open, the limit is {self.max_rows}")

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
        if row.image_numbers is None or end >= len(row.image_numbers) or row.image_numbers[end] < 0:
            return count
        inside = row.image_numbers[row.length : end] == row.image_numbers[end]
        before = count - int(inside.sum())
        rest = int((row.image_numbers[end:] == row.image_numbers[end]).sum())
        return before if before > 0 else count + rest

    def unseen(self, row: Row, count: int) -> int:
        """Image tokens of the pictures that a pass over a row's next `count` tokens has to encode."""
        return unseen(row, count, self._encoder)

    @property
    def encoded(self) -> Encoded:
        """What the vision tower has done so far."""
        return self._encoder.done

    def close_row(self, row: Row) -> None:
        """Free the row. Closing a closed row does nothing."""
        if (table := row.close()) is not None:
            self.cache.close(table)

    def forget(self) -> None:
        """Remember nothing of earlier prompts and images."""
        self.forget_prompts()
        self._encoder.forget()

    def forget_prompts(self) -> None:
        """Keep no blocks of earlier prompts: prompts that begin like them are computed anew."""
        self.cache.pool.forget_all()

    def capture(self) -> None:
        """Record steps of each number of rows as CUDA graphs; from then on steps replay them. Elsewhere nothing."""
        if self.info.device.type == "cuda":
            self._passes.capture(self.max_rows, self._family.mrope, self._answers)

    # passes ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self, rows: Sequence[Row], counts: Sequence[int], *, watched: bool = False, keep: Keep | None = None
    ) -> Tensor:
        """Compute the next `counts` tokens of each row, all in one pass -> hidden state `[B, d]` of each one's last.

        States are those after the last norm. `watched`: keep what `watch_answers` has named for `answer_states`. `keep`
        gets those of every token of its rows. Raises OutOfRows before anything is computed.
        """
        assert len(rows) == len(counts) > 0, f"{len(rows)} rows, {len(counts)} counts"
        for row, count in zip(rows, counts, strict=True):
            self.reserve(row, count)
        reading = self._reading if any(row.prompt is not None for row in rows) else None
        taps = [*self._taps, self._watching] if watched else self._taps
        hidden = self._passes.run(rows, counts, taps, reading, keep)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
            if row.prompt is not None:
                self._computed(row, row.prompt)
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

    def read_prompts(self, reader: PromptReader | None) -> None:
        """Read every prompt token that is computed from now on, for `notes`, or none. Earlier prompts are forgotten."""
        if reader is (self._reading and self._reading.reader):
            return
        assert not self.open_rows, f"{self.open_rows} rows are open, which were not read from their beginning"
        self.cache.keep_notes(None if reader is None else reader.width)
        self._reading = None if reader is None else Reading(reader, self._decoder, self.cache)

    def watch_answers(self, layers: Sequence[int] | None) -> None:
        """The layers that watched passes keep of each row's last token. Before `capture`, so that its graphs do too."""
        if layers is None or self._answers is None or self._answers.layers != list(layers):
            self._answers = None if layers is None else Tap(self._decoder, layers)

    @property
    def answer_states(self) -> Tensor:
        """States `[B, layers, d]` of each row's last token in the latest watched pass, in the order of its rows."""
        return self._watching.states

    @property
    def _watching(self) -> Tap:
        assert self._answers is not None, "no layers of answers are watched"
        return self._answers

    def notes(self, row: Row, tokens: int) -> Tensor:
        """What was read of a row's first tokens, `[tokens, width]`, wherever they were computed; NaN where nothing."""
        return self.cache.noted(row.table, tokens)

    @property
    def reading_seconds(self) -> float:
        """Seconds that reading has taken so far; on a GPU, to launch it."""
        return 0.0 if self._reading is None else self._reading.seconds

    def prefill_uncached(self, groups: Sequence[Sequence[Prompt]], last: int | None = 1) -> None:
        """Compute prompts for the taps alone, group by group: no rows, no cache, `max_rows` groups in a pass.

        The prompts of a group have the same images, or none; where the family allows it, what they begin with is
        computed once. The taps get the states of the `last` tokens of each prompt, or of all, one after the other.
        """
        self._uncached.run(groups, last, self._taps)

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

    def _place(self, row: Row, prompt: Prompt) -> None:
        """What of a row's images matters to where its tokens are and what they see."""
        if self._family.token_types is not None and prompt.image_tokens:
            row.image_numbers = image_numbers(prompt.ids, self._image_token_id)
        self._positions.prepare(row, prompt)

    def _computed(self, row: Row, prompt: Prompt) -> None:
        """Tell the cache what is there now, and drop what is not needed any more."""
        full = min(row.length, len(prompt.ids)) // self.cache.block_size
        self.cache.pool.name(row.table, full)
        if row.length >= len(prompt.ids):
            row.forget_prompt()
