"""Rows of the backbone for the scheduler's requests."""

from __future__ import annotations

from time import monotonic

from models.backbone import Backbone, OutOfRows, Row
from server.engine.own_request import OwnRequest
from server.engine.scheduler import NoRoom


class BackboneRows:
    """The scheduler's `RowAllocator` over a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def open(self, request: OwnRequest, *, alone: bool) -> None:
        """Give a request its row. Raises NoRoom, or OutOfRows where it is `alone` and there never will be room."""
        if not alone and not self._backbone.has_room(len(request.prompt.ids) + len(request.output_ids)):
            raise NoRoom
        try:
            request.row = self._backbone.open_row(request.prompt, request.max_tokens, request.output_ids)
        except OutOfRows as error:
            if alone:
                raise
            raise NoRoom from error
        if request.timings.scheduled is None:
            request.timings.scheduled = monotonic()
        if request.cached_tokens is None:
            request.cached_tokens = request.row.length

    def chunk(self, request: OwnRequest, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""
        return self._backbone.chunk(row_of(request), count)

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
