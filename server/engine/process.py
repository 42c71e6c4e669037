"""The engine in a process of its own: it shares neither the interpreter's lock nor a crash with the HTTP process.

The process is told what to load on its standard input, and knows none of the server's secrets. It ends with the
connection, so that nothing is left of a server that was killed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from server.engine.launch import LaunchSpec, explains_itself
from server.watch.logs import configure
from server.workers.launch import python_command, without_import_variables
from server.workers.limits import raise_descriptor_limit

if TYPE_CHECKING:
    from models.progress import Tell
    from server.engine.protocol import Engine

logger = logging.getLogger(__name__)

SECRET_WORDS = frozenset(
    {"KEY", "KEYS", "SECRET", "SECRETS", "TOKEN", "TOKENS", "PASSWORD", "PASSWD", "PASS", "CREDENTIALS", "DSN", "AUTH"}
)
OURS = ("AUTOSTEER_", "OTEL_", "PG")  # what configures the server, its traces and its database
# The hub's client's: weights may be fetched with its token, from a mirror or as its other variables say.
HUB = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")


class EngineProcess:
    """An `EngineLoop` in a process, which begins to load at once."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                python_command(__name__, theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=patient(engine_environment(os.environ)),
                start_new_session=True,  # a Ctrl-C is the server's to handle
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as file:
            file.write(pickle.dumps(spec))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def connect(self) -> socket.socket:
        """The server's side of its connection."""
        return self._connection

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    async def ended(self, seconds: float) -> str | None:
        """How it has ended, waiting for that for so long; None if it has not."""
        try:
            code = await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            return None
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what the engine has no use for and may be secret, and without folders to import from.

    It cannot be a few names that are let through: torch, its back ends and the hub's client read dozens.
    """
    kept = without_import_variables(environment)
    return {name: value for name, value in kept.items() if name.startswith(HUB) or not _is_secret(name, value)}


def patient(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with threads that sleep soon where they wait for each other, if nothing is said of that.

    By default they look again and again for some milliseconds. Where another program has one thread's core for as long,
    the rest burn theirs at each of the hundreds of meetings in a step, which then takes 760 ms instead of 25.
    """
    said = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment)
    return {**environment, **({} if said else {"GOMP_SPINCOUNT": "1000"})}


def _is_secret(name: str, value: str) -> bool:
    if name.upper().startswith(OURS) or not SECRET_WORDS.isdisjoint(name.upper().split("_")):
        return True
    has_password = "@" in value.partition("://")[2]
    return has_password and not name.upper().endswith("_PROXY")  # which the hub's client may need


def main() -> None:
    """The process: serve until the other side has gone."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # sent to all of a service's processes, they are the server's to handle
    spec: LaunchSpec = pickle.load(sys.stdin.buffer)  # noqa: S301  of the process that has started this one
    configure(spec.log_format, access=False)
    raise_descriptor_limit()  # each image that waits has one
    from server.engine.loop import EngineLoop

    EngineLoop(socket.socket(fileno=int(sys.argv[1])), lambda tell: _load(spec, tell), leave=_leave).run()
    _leave()


def _load(spec: LaunchSpec, tell: Tell) -> Engine[Any]:
    try:
        engine = spec.load(tell)
    except BaseException as error:
        if not explains_itself(error):
            logger.exception("the model could not be loaded")
        raise
    gc.collect()
    gc.freeze()  # hundreds of thousands of objects of libraries, which each full collection would walk through
    return engine


def _leave() -> None:
    """End at once: there is nothing to save, and what libraries do at an exit can take seconds."""
    os._exit(0)


if __name__ == "__main__":
    main()
