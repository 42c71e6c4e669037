"""`python -m tests.clients`: every client of the catalogue against one server, and a table of what worked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from PIL import Image

from tests.clients.catalogue import CLIENTS, Client
from tests.clients.environments import Environments, NotMade
from tests.clients.programs import tasks
from tests.end_to_end.processes import ServerProcess, clean_environment, data_url, end
from tests.server.scripted import MODEL

PROGRAMS = Path(__file__).parent / "programs"
CHECKPOINT = Path(__file__).parents[2] / "models/demo/checkpoint"
SECONDS = 240
TEXTS = {
    "hello": tasks.HELLO,
    "greeting": tasks.GREETING,
    "askPicture": tasks.ASK_PICTURE,
    "seen": tasks.SEEN,
    "askWeather": tasks.ASK_WEATHER,
    "done": tasks.DONE,
    "askHarm": tasks.ASK_HARM,
    "refusal": tasks.REFUSAL,
}


class Cell(NamedTuple):
    """What came of a task of a client: whether it worked, and what the client showed, or why not."""

    client: str
    task: str
    ok: bool
    note: str


@contextmanager
def scripted() -> Iterator[str]:
    """The URL of a server over the scripted engine."""
    command = [sys.executable, "-m", "tests.clients.scripted_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        end(process)


@contextmanager
def demo() -> Iterator[str]:
    """The URL of a server of the bundled model."""
    with ServerProcess(["--model-aliases", "*"]) as server:
        yield server.url


class Runner:
    """Runs programs; a server starts with the first client that asks it."""

    def __init__(self, environments: Environments, stack: ExitStack) -> None:
        self._environments = environments
        self._stack = stack
        self._urls: dict[bool, str] = {}

    def cells(self, client: Client) -> Iterator[Cell]:
        """What comes of a client's tasks, as it comes."""
        try:
            command = self._environments.command(client, PROGRAMS)
        except NotMade as error:
            yield Cell(client.name, "install", ok=False, note=str(error))
            return
        folder, told = self._environments.folder(client), False
        try:
            done = subprocess.run(
                command, cwd=folder, env=self._environment(client), capture_output=True, text=True, timeout=SECONDS
            )
            output, errors = done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            output, errors = (error.stdout or b"").decode(), f"not done in {SECONDS} s"
        for line in output.splitlines():
            if line.startswith('{"task"'):
                told = True
                cell = json.loads(line)
                yield Cell(client.name, cell["task"], cell["ok"], cell["note"])
        if not told:
            yield Cell(client.name, "run", ok=False, note=" ".join(errors.split())[-300:])

    def _environment(self, client: Client) -> Mapping[str, str]:
        if client.demo not in self._urls:
            self._urls[client.demo] = self._stack.enter_context(demo() if client.demo else scripted())
        return {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "CLIENT_URL": self._urls[client.demo],
            "CLIENT_MODEL": MODEL,
            "CLIENT_PICTURE": data_url(Image.new("RGB", (16, 16), "red")),
            "CLIENT_TEXTS": json.dumps(TEXTS),
            "CLIENT_CHECKPOINT": str(CHECKPOINT),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }


def main(
    only: Annotated[list[str] | None, typer.Option(help="Clients whose name holds this.")] = None,
    folder: Annotated[Path, typer.Option(envvar="CLIENTS", help="Where environments are, or are made.")] = Path(
        ".cache/clients"
    ),
) -> None:
    """Run clients against the server, and print what worked. Ends with 1 where something did not."""
    environments = Environments(folder.resolve())
    chosen = [each for each in CLIENTS.values() if not only or any(part in each.name for part in only)]
    cells: list[Cell] = []
    with ExitStack() as stack:
        runner = Runner(environments, stack)
        for client in chosen:
            for cell in runner.cells(client):
                print(f"{'OK  ' if cell.ok else 'NOT '} {cell.client}: {cell.task}  {cell.note}", flush=True)
                cells.append(cell)
    print("\n| client | version | OK | not OK, or what a refusal is |\n|---|---|---|---|")
    for client in chosen:
        mine = [cell for cell in cells if cell.client == client.name]
        worked = ", ".join(cell.task for cell in mine if cell.ok)
        notes = "; ".join(f"{cell.task}: {cell.note}" for cell in mine if cell.note)
        print(f"| {client.name} | {environments.versions(client)} | {worked} | {notes[:300]} |")
    good = sum(cell.ok for cell in cells)
    print(f"\n{good} of {len(cells)} cells OK")
    raise typer.Exit(good != len(cells))


if __name__ == "__main__":
    typer.run(main)
