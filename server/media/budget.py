"""What images may cost: those of one request in pixels and seconds, those of all requests in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from PIL import Image

from server.media.files import MediaError
from server.settings.decode_memory import decode_bytes


class DecodeMemory:
    """Counts bytes of all images that are decoded: `limit` at most. Who asks first has room first. For any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._asking: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def hold(self, count: int) -> None:
        """Wait until so many bytes more have room, and hold them. At most once at a time for one request."""
        assert count <= self.limit, f"{count} bytes never have room in {self.limit}"
        with self._changed:
            self._asking.append(ticket := object())
            self._changed.wait_for(lambda: self._asking[0] is ticket and self._held + count <= self.limit)
            self._asking.popleft()
            self._held += count
            self._changed.notify_all()

    def release(self, count: int) -> None:
        """Hold so many bytes less."""
        with self._changed:
            self._held -= count
            self._changed.notify_all()


class Work:
    """What may still be spent on one request's images: pixels, and seconds of decoding. For one thread at a time.

    From the first image that is decoded until `close`, it holds memory for all whose pixels were counted before.
    """

    def __init__(self, pixels: int, seconds: float, memory: DecodeMemory) -> None:
        self._max_pixels = pixels
        self._max_seconds = seconds
        self._memory = memory
        self._held = 0
        self._pixels: dict[str, int] = {}  # by the field
        self._seconds = 0.0

    def count(self, param: str, size: tuple[int, int]) -> None:
        """Count the pixels of a field's image. Raises MediaError where the request's images have too many."""
        self._pixels[param] = size[0] * size[1]
        if (total := sum(self._pixels.values())) > self._max_pixels:
            raise MediaError(
                f"the images of this request have {total} pixels or more together, the limit is {self._max_pixels}"
            )

    def timed(self, decode: Callable[[float], Image.Image]) -> Image.Image:
        """Decode within the seconds that are left. Raises MediaError where none are, or what `decode` raises.

        The first time it waits for memory, which others may have; that does not count.
        """
        if not self._held:
            needed = decode_bytes(sum(self._pixels.values()), max(self._pixels.values(), default=0))
            self._memory.hold(needed)
            self._held = needed
        left = self._max_seconds - self._seconds
        if left <= 0:
            raise MediaError(f"the images of this request take more than {self._max_seconds:g} seconds to decode")
        begun = monotonic()
        try:
            return decode(left)
        finally:
            self._seconds += monotonic() - begun

    def close(self) -> None:
        """Hold no memory: nothing is decoded any more, and what was is of no more use."""
        self._memory.release(self._held)
        self._held = 0
