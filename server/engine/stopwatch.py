"""How long something takes on the device that computes it."""

from __future__ import annotations

from time import monotonic

import torch


class Stopwatch:
    """Seconds between what a device does before this is made and before `stop`.

    On a GPU the device's own events tell, as the host only launches its work; elsewhere the clock does.
    """

    def __init__(self, device: torch.device) -> None:
        self._began = monotonic()
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events = first, last
            first.record()

    def stop(self) -> float:
        """Seconds of the device. On a GPU waits for it."""
        if self._events is None:
            return monotonic() - self._began
        first, last = self._events
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000
