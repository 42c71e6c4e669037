"""`autosteer` for a shell: each command is a fork of a process that has imported everything.

A command has the arguments, environment, folder and output that the shell gave it, and answers to signals and ends as
`autosteer` does; it takes none of the seconds that the imports take.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

from tests.end_to_end.forked import Forked
from tests.end_to_end.processes import end

# In place of the command. It hands on what it was given, then signals, then the code that the fork ended with.
_SCRIPT = """#!{python} -IS
import json, os, signal, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({path!r})
given = sys.argv[1:], dict(os.environ), os.getpid(), os.getcwd()
asked.sendall(json.dumps(given).encode() + b"\\n")
answers = asked.makefile()
pid = int(answers.readline())
for each in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
    signal.signal(each, lambda number, _: os.kill(pid, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def forked_command(folder: Path) -> Iterator[Path]:
    """A folder in `folder` that holds the command `autosteer`; for the path of a shell that runs meanwhile."""
    path, programs = folder / "asked", folder / "programs"
    programs.mkdir()
    command = programs / "autosteer"
    command.write_text(_SCRIPT.format(python=sys.executable, path=str(path)))
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        accepting = threading.Thread(target=_accept, args=[listening])
        accepting.start()
        try:
            yield programs
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # which ends `accept`
            accepting.join()


def _accept(listening: socket.socket) -> None:
    running: list[threading.Thread] = []
    while True:
        try:
            asked, _ = listening.accept()
        except OSError:
            break
        running.append(threading.Thread(target=_run, args=[asked]))
        running[-1].start()
    for each in running:
        each.join()


def _run(asked: socket.socket) -> None:
    """One command, to its end, or until the script in its place is gone."""
    with asked, asked.makefile("rw") as file:
        arguments, environment, pid, folder = json.loads(file.readline())
        process = Forked(arguments, environment, f"/proc/{pid}/fd/1", Path(folder), errors=f"/proc/{pid}/fd/2")
        try:
            print(process.pid, file=file, flush=True)
            wait([process.sentinel, asked])
            if (code := process.poll()) is not None:
                print(code, file=file, flush=True)
        except BrokenPipeError:  # the shell was ended, and the script with it
            pass
        finally:
            end(process)
