"""Rows of the backbone for the scheduler's requests."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from models.errors import OutOfRows
from server.engine.own_request import OwnRequest
from server.engine.scheduler import NoRoom

if TYPE_CHECKING:
    from models.backbone import Backbone, Row


class BackboneRows:
    """The scheduler's `RowAllocator` over a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def open(self, request: OwnRequest, *, alone: bool) -> None:
        """Give a request its row. Raises NoRoom, or OutOfRows where it is `alone` and there never will be room."""
        if not alone and not self._backbone.has_room(len(request.prompt.ids) + len(request.output_ids)):
            raise NoRoom
        source = request.source
        try:
            if source is not None and source.has_prompt:
                request.row = self._backbone.copy_row(row_of(source), request.prompt, request.output_ids)
            else:
                anew = request.states is not None
                request.row = self._backbone.open_row(request.prompt, request.max_tokens, request.output_ids, anew)
        except OutOfRows as error:
            if alone:
                raise
            raise NoRoom from error
        self._begin(request, request.row)

    def hand_over(self, request: OwnRequest, heir: OwnRequest) -> None:
        """Let another request of the same prompt go on in the place of one that ends."""
        heir.row = self._backbone.take_over(row_of(request), heir.prompt)
        request.row = None
        self._begin(heir, heir.row)

    def restart(self, request: OwnRequest) -> None:
        """Let a request go on from the end of its prompt."""
        request.row = self._backbone.take_over(row_of(request), request.prompt)

    def _begin(self, request: OwnRequest, row: Row) -> None:
        if request.states is not None:
            request.states.clear()  # of what was computed before its row was taken back
        if request.timings.scheduled is None:
            request.timings.scheduled = monotonic()
        if request.cached_tokens is None:
            request.cached_tokens = row.length

    def chunk(self, request: OwnRequest, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""
        return self._backbone.chunk(row_of(request), count)

    def unseen(self, request: OwnRequest, count: int) -> int:
        """Image tokens of the pictures that a pass over its next `count` tokens has to encode."""
        return self._backbone.unseen(row_of(request), count)

    def reserve(self, request: OwnRequest, count: int) -> bool:
        """Make sure of room for a request's next tokens; False if there is none."""
        try:
            self._backbone.reserve(row_of(request), count)
        except OutOfRows:
            return False
        return True

    def release(self, request: OwnRequest) -> None:
        """Take a request's row back, if it has one."""
        if request.row is not None:
            self._backbone.close_row(request.row)
            request.row = None


def row_of(request: OwnRequest) -> Row:
    """The row of a request that runs."""
    assert request.row is not None, f"request {request.id} runs without a row"
    return request.row
