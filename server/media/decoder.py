"""Decoding images in processes of their own: Pillow holds the interpreter's lock while it decodes a WebP or blends an
alpha channel, for half a second of a large image, and all streams would stand still.

It contains what hostile bytes can do as well: a decoder that crashes, runs on or wants all memory takes its process
with it and nothing else. A process has no secrets in its environment, and ends when its pipe does.
"""

from __future__ import annotations

import logging
import struct
import sys
import warnings

from PIL import Image

from server.media.files import MediaError, decode_image, image_size
from server.settings.decode_memory import DECODING_BYTES
from server.settings.units import MEBI
from server.workers.limits import limit_memory
from server.workers.process import Worker, WorkerLost, Workers, be_modest, serve

logger = logging.getLogger(__name__)

MEASURE, DECODE = b"m", b"d"  # what a question begins with, before the file
SIZE = struct.Struct("<II")  # width and height; 0: refused. Pixels or a message follow
FILE_COPIES = 3  # of an image's bytes, as they come and as they are read
OTHER_BYTES = 64 * MEBI  # tables of decoders, and what is never given back


class Decoders:
    """`count` processes that decode files of `max_bytes` and images of `max_pixels` at most. For worker threads.

    `seconds`: after so long without an answer a process is killed and its image refused.
    """

    def __init__(self, count: int, *, max_bytes: int, max_pixels: int, seconds: float) -> None:
        self._seconds = seconds
        memory = DECODING_BYTES * max_pixels + FILE_COPIES * max_bytes + OTHER_BYTES
        self._workers = Workers(count, lambda: Worker(__name__, max_pixels, memory))

    def start(self) -> None:
        """Start all processes, so that nobody waits for that later. Blocks, briefly."""
        self._workers.start()

    def measure(self, data: bytes) -> tuple[int, int]:
        """`image_size` in another process; waits for one that is free. Raises MediaError."""
        return self._ask(MEASURE, data, self._seconds)[0]

    def decode(self, data: bytes, seconds: float | None = None) -> Image.Image:
        """`decode_image` in another process, within so many seconds; waits for one that is free. Raises MediaError."""
        size, pixels = self._ask(DECODE, data, self._seconds if seconds is None else min(seconds, self._seconds))
        image = Image.new("RGB", size, None)  # not filled: that would hold the lock as well
        image.frombytes(pixels)
        return image

    def _ask(self, question: bytes, data: bytes, seconds: float) -> tuple[tuple[int, int], memoryview]:
        try:
            answer = self._workers.ask((question, data), seconds)
        except WorkerLost as lost:
            logger.warning("a decoder of images gave no answer and is ended: %s", lost)
            raise MediaError("the image takes too much time or memory to decode, or breaks its decoder") from lost
        width, height = SIZE.unpack(answer[: SIZE.size])
        rest = answer[SIZE.size :]
        if not width:
            raise MediaError(bytes(rest).decode())
        return (width, height), rest

    def close(self) -> None:
        """End the idle processes now, and each that is at work when it is done."""
        self._workers.close()


def main() -> None:
    """The process: answer until the other side has gone."""
    descriptor, max_pixels, memory_bytes = map(int, sys.argv[1:])
    be_modest()
    Image.init()  # what is loaded once is there before memory is limited
    limit_memory(memory_bytes)
    warnings.simplefilter("ignore")  # about damaged images; the server's log is not theirs to fill
    serve(descriptor, lambda data: _answer(bytes(data[:1]), bytes(data[1:]), max_pixels))


def _answer(question: bytes, data: bytes, max_pixels: int) -> tuple[bytes, bytes]:
    try:
        if question == MEASURE:
            return SIZE.pack(*image_size(data, max_pixels)), b""
        image = decode_image(data, max_pixels)
    except MediaError as error:
        return SIZE.pack(0, 0), str(error).encode()
    return SIZE.pack(*image.size), image.tobytes()


if __name__ == "__main__":
    main()
