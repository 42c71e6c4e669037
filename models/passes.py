"""Passes of the decoder over tokens of rows: how a pass is laid out, and its run under the taps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableSequence, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.attention import DecodePass, MixedPass, Pass, Span
from models.cache import PagedCache
from models.decode import make_decode
from models.graphs import DecodeGraphs
from models.image_tokens import embed_pictures
from models.info import BackboneInfo
from models.positions import Positions
from models.reading import Reading
from models.rows import Row, Steps, spans_of
from models.tap import Tap
from models.vision import VisionEncoder

LEAST_STEP = 16  # tokens, between the sizes of passes

Keep = Mapping[Row, MutableSequence[Tensor]]  # where the states of all of a row's tokens are put, pass by pass


class Passes:
    """Runs a decoder over the next tokens of rows, whose blocks hold them. Lengths of rows are the caller's."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a transformers model with a head
        info: BackboneInfo,
        cache: PagedCache,
        encoder: VisionEncoder,
        positions: Positions,
        image_token_id: int,
    ) -> None:
        self._decoder: Any = model.get_decoder()
        self._embed: Any = model.get_input_embeddings()
        self._info = info
        self._cache = cache
        self._encoder = encoder
        self._positions = positions
        self._image_token_id = image_token_id
        self._steps: Steps | None = None
        self._graphs: DecodeGraphs | None = None
        self._cache_argument = (
            "cache" if "cache" in inspect.signature(self._decoder.forward).parameters else "past_key_values"
        )
        self._keeps: bool = getattr(self._decoder, "keeps_states", False)
        self._no_mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=info.device)  # or the model makes one

    @torch.inference_mode()
    def capture(self, max_rows: int, mrope: bool, tap: Tap | None = None) -> None:
        """Record steps of up to `max_rows` rows as CUDA graphs, and in them `tap`; from then on steps replay them."""
        self._graphs = DecodeGraphs(self._cache, self._decode_pass, max_rows, self._info, mrope, tap)
        self._graphs.capture()

    def run(
        self,
        rows: Sequence[Row],
        counts: Sequence[int],
        taps: Sequence[Tap],
        reading: Reading | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """One pass over the next `counts` tokens of each row -> hidden state `[B, d]` of each one's last.

        `taps` read the states of the same tokens, `reading` those of all tokens; `keep` gets `[count, d]` of its rows.
        """
        if self._cache.compact():
            self._steps = None
        if not all(count == 1 and row.length for row, count in zip(rows, counts, strict=True)):
            return self._mix(rows, counts, taps, reading, keep or {})
        hidden = self._decode_rows(rows, taps, reading)
        if keep:
            for row, state in zip(rows, hidden, strict=True):
                if row in keep:
                    keep[row].append(state[None].clone())
        return hidden

    def _decode_rows(self, rows: Sequence[Row], taps: Sequence[Tap], reading: Reading | None) -> Tensor:
        """A pass over one token of each row."""
        spans = spans_of(rows, [1] * len(rows))
        steps = self._steps
        if steps is not None and steps.go_on(rows):
            steps.advance()
        else:
            self._steps = steps = Steps(self._cache, rows, self._positions.of_spans(rows, spans))
        tokens = [row.tokens[row.length] for row in rows]
        pictured = any(row.pictures for row in rows)
        if self._graphs is not None and self._graphs.read(taps) and reading is None and not pictured:
            return self._graphs.step(steps, tokens)
        embedded = self._embed(torch.tensor([tokens], device=self._info.device))
        deep = self._embed_pictures(embedded, rows, spans) if pictured else {}
        paged = DecodePass(self._cache, steps.slots, steps.decode)
        with self._read(reading, self._slots(spans) if reading is not None else ()):
            return self._decode(embedded, steps.positions, paged, deep=deep, taps=taps)

    def _decode_pass(self, ids: Tensor, positions: Tensor, paged: Pass, taps: Sequence[Tap]) -> Tensor:
        return self._decode(self._embed(ids), positions, paged, taps=taps)

    def _mix(
        self, rows: Sequence[Row], counts: Sequence[int], taps: Sequence[Tap], reading: Reading | None, keep: Keep
    ) -> Tensor:
        """A pass over any tokens: rows that add one come first, then chunks, equally long ones side by side."""
        spans = spans_of(rows, counts)
        order = sorted(range(len(rows)), key=lambda at: (not spans[at].decodes, spans[at].start > 0, spans[at].count))
        ordered = [spans[place] for place in order]
        rows = [rows[place] for place in order]
        ids = [token for row, span in zip(rows, ordered, strict=True) for token in row.tokens[span.start : span.end]]
        spare = self._spare(len(ids))
        embedded = self._embed(torch.tensor([[*ids, *[0] * spare]], device=self._info.device))
        deep = self._embed_pictures(embedded, rows, ordered)
        last, end = [0] * len(rows), 0
        for place, span in zip(order, ordered, strict=True):
            end += span.count
            last[place] = end - 1
        positions = pad(self._positions.of_spans(rows, ordered), (0, spare))
        slots = self._slots(ordered)
        with self._read(reading, slots):
            paged, places = self._mixed(ordered, slots, spare), torch.tensor(last, device=self._info.device)
            hidden = self._decode(embedded, positions, paged, places, deep, taps)
        for place, row in zip(order, rows, strict=True):
            if row in keep:
                keep[row].append(hidden[last[place] + 1 - counts[place] : last[place] + 1].clone())
        return hidden[places]

    def _spare(self, tokens: int) -> int:
        """Tokens of nobody, with which a pass is of one of few sizes.

        On a CPU each new size of a pass makes kernels for its products, which takes as long as a hundred tokens.
        """
        if self._info.device.type != "cpu":
            return 0
        step = max(LEAST_STEP, 1 << max(0, tokens.bit_length() - 4))
        return -tokens % step

    def _read(self, reading: Reading | None, slots: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext() if reading is None else reading.during(slots)

    def _slots(self, spans: Sequence[Span]) -> list[int]:
        return [slot for span in spans for slot in self._cache.slots(span.table, span.start, span.end)]

    def _mixed(self, spans: Sequence[Span], slots: Sequence[int], spare: int) -> MixedPass:
        """The storage and the attention of a pass; spans that add one token come first, tokens of nobody last."""
        decoding = [span for span in spans if span.decodes]
        tables, ends = [span.table for span in decoding], [span.end for span in decoding]
        return MixedPass(
            self._cache,
            self._cache.targets([*slots, *[0] * spare]),  # of a block that no row has
            make_decode(self._cache, tables, ends) if decoding else None,
            spans[len(decoding) :],
            spare,
        )

    def _embed_pictures(self, embedded: Tensor, rows: Sequence[Row], spans: Sequence[Span]) -> dict[str, Any]:
        return embed_pictures(embedded, rows, spans, self._encoder, self._image_token_id)

    def _decode(
        self,
        embedded: Tensor,
        positions: Tensor,
        paged: Pass,
        last: Tensor | None = None,
        deep: Mapping[str, Any] | None = None,
        taps: Sequence[Tap] = (),
    ) -> Tensor:
        """The decoder on embeddings `[1, N, d]` -> states `[N, d]`; `taps` read those at `last`, or all."""
        options = dict(deep or {})
        kept_by_itself = taps if self._keeps and last is None else ()
        if kept_by_itself:
            options["keep"] = [layer for tap in taps for layer in tap.layers]
        with ExitStack() as reading:
            for tap in () if kept_by_itself else taps:
                reading.enter_context(tap.at_all() if last is None else tap.at(last, torch.zeros_like(last)))
            output = self._decoder(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask=self._no_mask,
                paged=paged,
                use_cache=True,
                **{self._cache_argument: paged},
                **options,
            )
        for tap in kept_by_itself:
            tap.take(output.kept)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden
