"""How far the model is loaded: what the engine's process passes on of it, and what the server makes of that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from models.progress import LoadProgress, Stage, Tell
from server.watch.logs import LIFE

SEND_SECONDS = 0.5
LOG_SECONDS = 10.0  # a small model, which is there sooner, has no line


class Reporter:
    """Sends and logs some of what it is told, the end of each stage included. For any thread."""

    def __init__(self, send: Tell, clock: Callable[[], float] = monotonic) -> None:
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._sent = -SEND_SECONDS
        self._logged = clock()
        self._stage_is_logged = False
        self._last: LoadProgress | None = None

    def __call__(self, progress: LoadProgress) -> None:
        """Take note of it, and pass it on if it is time to."""
        with self._lock:
            now = self._clock()
            begins = self._last is None or self._last.stage != progress.stage
            whole = progress.done == progress.total
            self._last = progress
            self._stage_is_logged = self._stage_is_logged and not begins
            if begins or whole or now - self._sent >= SEND_SECONDS:
                self._sent = now
                self._send(progress)
            if now - self._logged >= LOG_SECONDS or (whole and self._stage_is_logged):
                self._logged, self._stage_is_logged = now, True
                LIFE.info("loading the model: %s", progress)


class Loading:
    """What was told of a load that goes on."""

    def __init__(self) -> None:
        self._last: LoadProgress | None = None
        self._shares: dict[Stage, float] = {"download": 0.0, "weights": 0.0}

    def take(self, progress: LoadProgress) -> None:
        """Take in how far a stage is."""
        self._last = progress
        self._shares[progress.stage] = progress.share
        if progress.stage == "weights":
            self._shares["download"] = 1.0  # what is read has been fetched, now or before

    @property
    def shares(self) -> dict[Stage, float]:
        """How much of each stage is done, 0 to 1."""
        return dict(self._shares)

    def __str__(self) -> str:
        return "" if self._last is None else f": {self._last}"
