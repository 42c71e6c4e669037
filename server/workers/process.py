"""A process that answers one request after another, and is killed where it gives no answer in time."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedRWPair
from pathlib import Path
from queue import LifoQueue
from time import sleep

from server.workers.launch import plain_environment, python_command
from server.workers.limits import limit_this_process
from server.workers.memory import return_large_blocks

LENGTH = struct.Struct("<Q")  # of what follows
NICENESS = 5  # a quarter of a core beside one other session; less, and on a busy machine they end for want of time
AUTOGROUP = Path("/proc/self/autogroup")
VARIABLES = {"OPENBLAS_NUM_THREADS": "1"}  # each of its threads would reserve memory, which is limited


class WorkerLost(Exception):
    """A process gave no answer: it has died, or was killed because it took too long."""


class Worker:
    """A process of the module `module`, started at once. For one thread at a time."""

    def __init__(self, module: str, *arguments: object) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                python_command(module, theirs.fileno(), *arguments),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=plain_environment(os.environ) | VARIABLES,
                start_new_session=True,  # a Ctrl-C is the server's to handle; what it starts is killed with it
            )
        self.ended = False
        self._socket = ours
        self._file = ours.makefile("rwb")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, parts: Sequence[bytes], seconds: float) -> memoryview:
        """The answer to a request of several parts. Raises WorkerLost if none comes in time: it has ended then."""
        with self._ended_if_lost():
            self._socket.settimeout(seconds)
            send(self._file, parts)
            return receive(self._file)

    def ask_a_copy(self, parts: Sequence[bytes], seconds: float) -> memoryview:
        """Ask a copy of the process, as `ask` does; for several threads at once. Raises WorkerLost."""
        ours, theirs = socket.socketpair()
        with self._ended_if_lost(), ours:
            ours.settimeout(seconds)
            with theirs:
                socket.send_fds(self._socket, [b"?"], [theirs.fileno()])
            with ours.makefile("rwb") as file:
                send(file, parts)
                return receive(file)

    @contextmanager
    def _ended_if_lost(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            self.end()
            raise WorkerLost(repr(error)) from error

    def kill(self) -> None:
        """Kill it and what it has started, whatever it does, from any thread: one that asks raises WorkerLost."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def end(self) -> None:
        """Kill it, and ask it nothing more."""
        self.ended = True
        self.kill()
        self._socket.close()


class Workers:
    """At most `count` processes, each started when it is first needed, or before. For worker threads."""

    def __init__(self, count: int, start: Callable[[], Worker]) -> None:
        self._count = count
        self._start = start
        self._closed = False
        self._asked: set[Worker] = set()
        self._idle: LifoQueue[Worker | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def start(self) -> None:
        """Start all that are not there yet, so that nobody waits for that later. Blocks until they are all idle."""
        with ExitStack() as held:
            for _ in range(self._count):
                held.enter_context(self._one())

    def ask(self, parts: Sequence[bytes], seconds: float) -> memoryview:
        """The answer of a process that is free, or waited for. Raises WorkerLost."""
        with self._one() as worker:
            return worker.ask(parts, seconds)

    @contextmanager
    def _one(self) -> Iterator[Worker]:
        worker = self._idle.get()
        try:
            if worker is None or worker.ended:
                worker = self._start()
            self._asked.add(worker)
            yield worker
        finally:
            if worker is not None:
                self._asked.discard(worker)
                if self._closed:
                    worker.end()
            self._idle.put(worker)

    def close(self) -> None:
        """End the idle processes now, and each that is at work when it is done."""
        self._closed = True
        for worker in list(self._idle.queue):
            if worker is not None:
                worker.end()


class SharedWorker:
    """One process that answers by `Copies`, for several threads; started when it is first needed, or before."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start
        self._starting = threading.Lock()
        self._worker: Worker | None = None
        self._closed = False

    def start(self) -> Worker:
        """The process, which may first have to start."""
        with self._starting:
            if self._worker is None or self._worker.ended:
                self._worker = self._start()
            if self._closed:
                self._worker.end()
            return self._worker

    def ask(self, parts: Sequence[bytes], seconds: float) -> memoryview:
        """The answer of a copy. Raises WorkerLost, also to all others who wait for one."""
        return self.start().ask_a_copy(parts, seconds)

    def kill(self) -> None:
        """End the process now, or once it has started."""
        self._closed = True
        if self._worker is not None:
            self._worker.end()


def send(file: BufferedRWPair, parts: Sequence[bytes]) -> None:
    """Send a message of several parts. Raises BrokenPipeError, ConnectionResetError if the other side has gone."""
    file.write(LENGTH.pack(sum(map(len, parts))))
    file.writelines(parts)
    file.flush()


def receive(file: BufferedRWPair) -> memoryview:
    """What the other side sends next. Raises EOFError if it has gone."""
    header = file.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise EOFError("the other side has gone")
    (length,) = LENGTH.unpack(header)
    data = file.read(length)  # unlike a bytearray not filled with zeros before, which would hold the lock
    if len(data) < length:
        raise EOFError("the other side has gone")
    return memoryview(data)


def serve(descriptor: int, answer: Callable[[memoryview], Iterable[bytes]]) -> None:
    """Answer each request, in parts, until the other side has gone; for the process that is asked."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as file:
        try:
            while True:
                send(file, [*answer(receive(file))])
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def be_modest() -> None:
    """Let this process give way to the server's streams, and leave no core file."""
    os.nice(NICENESS)
    _be_a_modest_session()
    limit_this_process(resource.RLIMIT_CORE, 0)
    return_large_blocks()


def _be_a_modest_session() -> None:
    """Give way as a session too: where Linux shares the cores among sessions first, a niceness counts within one."""
    for _ in range(20):
        try:
            AUTOGROUP.write_text(str(NICENESS))
        except BlockingIOError:
            sleep(0.05)  # one such change in a tenth of a second, whoever makes it
        except OSError:
            return  # no session has a share of its own here
        else:
            return
