"""Decoding images in processes of their own: Pillow holds the interpreter's lock while it decodes a WebP or blends an
alpha channel, for half a second of a large image, and all streams would stand still.

It contains what hostile bytes can do as well: a decoder that crashes, runs on or wants all memory takes its process
with it and nothing else. A process has no secrets in its environment, and ends when its pipe does.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
import subprocess
import sys
import warnings
from io import BufferedRWPair
from queue import LifoQueue

import numpy as np
from PIL import Image

from server.media.files import MediaError, decode_image
from server.workers.launch import plain_environment, python_command
from server.workers.limits import limit_this_process

logger = logging.getLogger(__name__)

REQUEST = struct.Struct("<Q")  # length of the data that follows
ANSWER = struct.Struct("<IIQ")  # width and height (0: refused), length of the pixels or of the message that follows
NICENESS = 5
MEMORY_BYTES = 2 * 2**30
MEMORY_BYTES_PER_PIXEL = 40


class Decoders:
    """`count` processes, each started when it is first needed. For worker threads.

    `seconds`: after so long without an answer a process is killed and its image refused.
    """

    def __init__(self, count: int, *, max_pixels: int, seconds: float) -> None:
        self._max_pixels = max_pixels
        self._seconds = seconds
        self._closed = False
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def decode(self, data: bytes) -> Image.Image:
        """`decode_image` in another process; waits for one that is free. Raises MediaError."""
        process = self._idle.get()
        try:
            if process is None or process.ended:
                process = _Process(self._max_pixels, self._seconds)
            return process.decode(data)
        finally:
            if self._closed and process is not None:
                process.end()
            self._idle.put(process)

    def close(self) -> None:
        """End the idle processes now, and each that is at work when it is done."""
        self._closed = True
        for process in list(self._idle.queue):
            if process is not None:
                process.end()


class _Process:
    """One decoder: a request, an answer, and so on, over a pair of sockets."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                python_command(__name__, theirs.fileno(), max_pixels),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Each thread of OpenBLAS would reserve memory, which is limited.
                env=plain_environment(os.environ) | {"OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # a Ctrl-C is the server's to handle
            )
        self.ended = False
        self._socket = ours
        self._socket.settimeout(seconds)
        self._file = ours.makefile("rwb")

    def decode(self, data: bytes) -> Image.Image:
        """Raises MediaError; a process that gives no answer is ended then."""
        try:
            width, height, answer = self._ask(data)
        except (OSError, EOFError) as error:
            logger.warning("a decoder of images gave no answer and is ended: %r", error)
            self.end()
            raise MediaError("the image takes too much time or memory to decode, or breaks its decoder") from error
        if not width:
            raise MediaError(bytes(answer).decode())
        image = Image.new("RGB", (width, height), None)  # not filled: that would hold the lock as well
        image.frombytes(answer)
        return image

    def _ask(self, data: bytes) -> tuple[int, int, memoryview]:
        self._file.write(REQUEST.pack(len(data)))
        self._file.write(data)
        self._file.flush()
        width, height, length = ANSWER.unpack(_read(self._file, ANSWER.size))
        return width, height, _read(self._file, length)

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.ended = True
        self._process.kill()
        self._process.wait()
        self._socket.close()


def _read(file: BufferedRWPair, length: int) -> memoryview:
    """Raises EOFError if the other side has gone."""
    data = np.empty(length, np.uint8).data  # unlike a bytearray not filled with zeros, which would hold the lock
    if file.readinto(data) < length:
        raise EOFError("the other side has gone")
    return data


def main() -> None:
    """The process: answer until the other side has gone."""
    descriptor, max_pixels = map(int, sys.argv[1:])
    os.nice(NICENESS)  # streams first
    limit = MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * max_pixels
    limit_this_process(resource.RLIMIT_AS, limit)
    limit_this_process(resource.RLIMIT_CORE, 0)
    warnings.simplefilter("ignore")  # about damaged images; the server's log is not theirs to fill
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as file:
        try:
            while True:
                (length,) = REQUEST.unpack(_read(file, REQUEST.size))
                for part in _answer(bytes(_read(file, length)), max_pixels):
                    file.write(part)
                file.flush()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(data: bytes, max_pixels: int) -> tuple[bytes, bytes]:
    try:
        image = decode_image(data, max_pixels)
    except MediaError as error:
        message = str(error).encode()
        return ANSWER.pack(0, 0, len(message)), message
    pixels = image.tobytes()
    return ANSWER.pack(image.width, image.height, len(pixels)), pixels


if __name__ == "__main__":
    main()
