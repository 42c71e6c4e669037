"""What the HTTP side needs of whoever runs requests for it: `server.engine.client.EngineClient`, or a test's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from models.progress import Stage
from server.engine.host import Inputs
from server.engine.live import Deliver
from server.engine.protocol import Facts, Load
from server.engine.wire import Parcel
from server.request import Ask


class Submits(Protocol):
    """What an answer needs of it."""

    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        """Accept all of a parcel's requests or none. Raises NotReady, QueueFull."""

    def abort(self, request_id: str) -> None:
        """End a request before the next step."""


class ClientProtocol(Submits, Protocol):
    """What the application needs of it."""

    model: tuple[Facts, Inputs] | None  # once it is loaded
    load: Load

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""

    @property
    def state(self) -> str:
        """One phrase for `/ready`."""

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""

    @property
    def retry_after(self) -> int:
        """Seconds after which a full queue may have room."""

    @property
    def load_shares(self) -> Mapping[Stage, float]:
        """How much of each stage of loading the model is done, 0 to 1."""

    @property
    def restarts(self) -> int:
        """How often the engine was started again."""

    async def series(self) -> bytes:
        """What the engine's library tells of itself, in Prometheus' text format."""

    def start(self) -> None:
        """Begin to load."""

    async def stop(self) -> None:
        """End what lives, then the engine."""

    def pack(self, asks: Sequence[Ask]) -> Parcel:
        """Requests for asks, ready to be submitted; for worker threads."""
