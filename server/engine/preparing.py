"""Preparing requests beside the steps: in the receiving thread, or in a lane of their own where it takes long."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable

from server.engine.protocol import Effort
from server.workers.lanes import Lane

NICENESS = 5


class Preparing:
    """Runs the work of preparing, by how much there is. For the receiving thread; a lane begins when it is needed."""

    def __init__(self) -> None:
        self._lanes: dict[Effort, Lane] = {}
        self._unprepared: dict[str, Lane] = {}  # ids of requests that a lane has, or will have

    def run(self, effort: Effort, request_ids: Iterable[str], work: Callable[[], object]) -> None:
        """Do `work`, which prepares these requests: now, if there is little of it."""
        if effort is Effort.NONE:
            work()
            return
        lane, ids = self._lane(effort), [*request_ids]
        self._unprepared.update(dict.fromkeys(ids, lane))

        def prepare() -> None:
            try:
                work()
            finally:
                for each in ids:
                    del self._unprepared[each]

        lane.submit(prepare)

    def after(self, request_id: str, work: Callable[[], object]) -> None:
        """Do `work` once this request is prepared, which may be now."""
        lane = self._unprepared.get(request_id)
        if lane is None:
            work()
        else:
            lane.submit(work)

    def close(self) -> None:
        """Let the threads end."""
        for lane in self._lanes.values():
            lane.close()

    def _lane(self, effort: Effort) -> Lane:
        if effort not in self._lanes:
            self._lanes[effort] = lane = Lane(1, f"prepare-{effort.name.lower()}")
            lane.submit(_give_way)
        return self._lanes[effort]


def _give_way() -> None:
    """Steps first."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
