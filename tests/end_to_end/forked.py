"""Servers forked from a process that has imported everything: a start is a second instead of seven of each process.

Their command line, engine process, environment, signals and ends are what they are after `autosteer serve`; only the
interpreter's start and the imports are not their own. What is claimed about those is tested with `ServerProcess`.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import psutil

from tests.end_to_end.processes import Program, ServerProcess, clean_environment
from tests.living import living


@dataclass
class ForkedServer(ServerProcess):
    """A `ServerProcess` that is ready sooner."""

    def _start(self, arguments: Sequence[str]) -> Program:
        output = f"/proc/{os.getpid()}/fd/{self._out.fileno()}"
        return Forked(arguments, clean_environment(self.environment), output, self.folder)

    @property
    def engine(self) -> psutil.Process:
        server, *children = self._processes
        mine = server.cmdline()
        found, *_ = living(children, lambda each: each.cmdline() == mine)  # a fork has its parent's
        return found


class Forked:
    """`autosteer` with these arguments, asked and ended like a `Popen`.

    `output`, `errors`: the files that it writes to; without the latter, both go to the former.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: str,
        folder: Path | None = None,
        errors: str | None = None,
    ) -> None:
        given = (list(arguments), dict(environment), (output, errors or output), folder or Path.cwd())
        self._process = forking().Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def sentinel(self) -> int:
        """For `multiprocessing.connection.wait`: ready when the process has ended."""
        return self._process.sentinel

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("autosteer", timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_from_here() -> None:
    """Make what servers are forked from a fork of this process, which has no threads that compute yet.

    Else it is a new interpreter, which imports for ten seconds what this one has imported.
    """
    import_module("tests.end_to_end.imported")
    forking()
    with patch("multiprocessing.util.spawnv_passfds", _fork):
        forkserver.ensure_running()


def _fork(_: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """In place of a new interpreter, whose last argument is the program."""
    pid = os.fork()
    if not pid:
        faulthandler.disable()  # it writes to a file that is closed now
        _close_all_but({0, 1, 2, *descriptors})
        gc.collect()
        gc.freeze()  # or each server, and each engine, would walk through a million objects when it is ready
        try:
            exec(arguments[-1], {})
        finally:
            os._exit(0)
    return pid


def renew_threads() -> None:
    """Make torch's pool of threads anew in a fork, before a second thread computes in it.

    The pool of before has no threads there. Torch leaves it to whichever operation comes first, and the two first ones
    of two threads end in "Invalid thread pool!" (caffe2/utils/threadpool): weights are loaded by several.
    """
    import torch

    torch.set_num_threads(torch.get_num_threads())


def _close_all_but(kept: set[int]) -> None:
    for each in {int(name) for name in os.listdir("/proc/self/fd")} - kept:  # noqa: PTH208
        with suppress(OSError):  # the one that the folder was read with
            os.close(each)


@cache
def forking() -> ForkServerContext:
    """Makes processes that have imported all that a server, its engine and a fit of a model need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.end_to_end.imported"])
    return context


def _run(arguments: list[str], environment: dict[str, str], outputs: tuple[str, str], folder: Path) -> None:
    """The server's process, from here on."""
    os.chdir(folder)
    for descriptor, output in enumerate(outputs, start=1):
        with open(output, "ab", buffering=0) as file:  # noqa: PTH123
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    from server.cli import main
    from server.engine import process

    sys.argv = ["autosteer", *arguments]
    with patch.object(process, "subprocess", _Subprocess):
        main.main()


class _ForkedEngine:
    """What `EngineProcess` needs of a `Popen`: the module that the command names runs in a fork of this process."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        **_: Any,
    ) -> None:
        theirs, ours = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(command[command.index("server.engine.process") :], theirs, set(pass_fds), env)
        os.close(theirs)
        self.stdin = os.fdopen(ours, "wb")
        self._process = psutil.Process(self.pid)

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        try:
            return int(self._process.wait(timeout))
        except psutil.TimeoutExpired as error:
            raise subprocess.TimeoutExpired("the engine", timeout or 0) from error


class EngineOfForkServer:
    """What `EngineProcess` needs of a `Popen`, for tests that are no forks themselves and have threads."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        **_: Any,
    ) -> None:
        module, *descriptors = command[command.index("server.engine.process") :]
        assert descriptors == [str(each) for each in pass_fds]
        theirs, ours = os.pipe()
        self._process = forking().Process(
            target=_engine, args=(module, _Descriptors([theirs, 2, *pass_fds]), dict(env))
        )
        self._process.start()
        os.close(theirs)
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdin = os.fdopen(ours, "wb")

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the engine", timeout or 0)
        return self._process.exitcode


class _Descriptors:
    """Open files that are sent with what a process is started with."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(each) for each in self.numbers]

    def __setstate__(self, sent: list[Any]) -> None:
        self.numbers = [each.detach() for each in sent]


def _engine(module: str, descriptors: _Descriptors, environment: Mapping[str, str]) -> NoReturn:
    stdin, stderr, *passed = descriptors.numbers
    os.dup2(stderr, 2)
    _become([module, *map(str, passed)], stdin, set(passed), environment)


class _Subprocess:
    """In place of the module, where the engine is started."""

    Popen: type = _ForkedEngine
    PIPE, DEVNULL, TimeoutExpired = subprocess.PIPE, subprocess.DEVNULL, subprocess.TimeoutExpired


class EnginesOfForkServer(_Subprocess):
    """The same in a test's own process."""

    Popen = EngineOfForkServer


def _become(argv: Sequence[str], stdin: int, kept: set[int], environment: Mapping[str, str]) -> NoReturn:
    """Run a module's `main` as a new process of it would, and end."""
    try:
        os.setpgid(0, 0)
        os.dup2(stdin, 0)
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 1)
        _close_all_but({0, 1, 2} | kept)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = list(argv)
        sys.stdin = open(0)  # noqa: SIM115
        import_module(argv[0]).main()
    finally:
        os._exit(1)
