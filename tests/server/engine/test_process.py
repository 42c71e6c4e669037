"""Real processes with a small engine in them: they die, hang, are left behind, and know no secrets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from models.errors import LoadError
from server.engine import process
from server.engine.client import EngineClient
from server.engine.connection import Connection
from server.engine.host import Inputs
from server.engine.launch import SMALL_MODEL, set_threads
from server.engine.live import NotReady
from server.engine.process import EngineProcess, engine_environment, patient
from server.engine.restarts import Restarts
from server.engine.wire import pack
from server.request import EngineFailed, Finish
from server.workers import launch
from tests.end_to_end.forked import EnginesOfForkServer
from tests.server.engine.test_client import Inbox, endless
from tests.server.fakes import as_any, ask
from tests.server.in_process import FakeSpec
from tests.waiting import WAIT_SECONDS, until

pytestmark = pytest.mark.chance

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are forks of a process that has imported everything."""
    monkeypatch.setattr(process, "subprocess", EnginesOfForkServer)


@pytest.fixture
def _new_interpreter(_sooner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is started as `autosteer serve` starts it, and finds these tests."""
    monkeypatch.setattr(process, "subprocess", subprocess)
    monkeypatch.setattr(launch, "PACKAGES", (*launch.PACKAGES, "tests"))


def engine_client(spec: FakeSpec, **options: Any) -> EngineClient:
    return EngineClient(EngineProcess(as_any(spec)), lambda: Inputs(as_any(None), None), **{"max_live": 100, **options})


def process_of(runner: EngineClient) -> EngineProcess:
    assert isinstance(runner._host, EngineProcess)
    return runner._host


@asynccontextmanager
async def running(spec: FakeSpec | None = None, **options: Any) -> AsyncIterator[tuple[EngineClient, psutil.Process]]:
    """A client of a process that has loaded, and the process."""
    runner = engine_client(spec or FakeSpec(), **options)
    runner.start()
    pid = process_of(runner).pid
    try:
        await runner.loaded()
        yield runner, psutil.Process(pid)
    finally:
        await runner.stop()
        assert not psutil.pid_exists(pid)


@pytest.mark.usefixtures("_new_interpreter")
async def test_it_knows_no_secrets_answers_and_ends_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EngineClient, "STOP_SECONDS", WAIT_SECONDS)
    monkeypatch.setenv("AUTOSTEER_AUDIT__URL", "postgresql://me:word@db/audit")
    inboxes = [Inbox() for _ in range(6)]
    async with running() as (runner, engine):
        assert not any("word" in value for value in engine.environ().values())
        assert "word" not in " ".join(engine.cmdline())
        assert os.getpgid(engine.pid) == engine.pid
        assert engine.num_fds() <= 6
        for number, inbox in enumerate(inboxes):
            runner.submit(pack([ask(str(number), [number + 1])]), inbox)
        await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
        assert all(inbox.finishes == [Finish.LENGTH] and len(inbox.events) == 5 for inbox in inboxes)
        last = Inbox()
        runner.submit(pack([endless("last")]), last)
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            engine.send_signal(sent)  # what is sent to all processes of a service is for the server to handle
    assert last.finishes == [Finish.ABORT]
    assert "it is killed" not in caplog.text


async def test_one_that_dies_ends_every_request_once_and_nothing_is_accepted_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as (runner, engine):
        inboxes = [Inbox() for _ in range(9)]
        for number, inbox in enumerate(inboxes):
            runner.submit(pack([endless(str(number))]), inbox)
        await inboxes[0].begun.wait()
        engine.kill()
        await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
        assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
        assert all(isinstance(inbox.events[-1].error, EngineFailed) for inbox in inboxes)
        assert runner.state == "failed: the engine's process was ended by SIGKILL"
        assert (runner.ready, runner.live) == (False, 0)
        with pytest.raises(NotReady, match="SIGKILL"):
            runner.submit(pack([endless("late")]), Inbox())
    assert "was ended by SIGKILL" in caplog.text


async def test_one_that_dies_is_started_again_and_serves() -> None:
    """Each request in flight ends once; none is accepted in between; those that come later are answered."""
    spec = FakeSpec()
    async with running(spec, again=lambda: EngineProcess(as_any(spec)), restarts=Restarts((0.0, 0.0))) as (runner, _):
        for number in (1, 2):
            inboxes = [Inbox() for _ in range(5)]
            for inbox in inboxes:
                runner.submit(pack([endless(f"{number} {id(inbox)}")]), inbox)
            await inboxes[0].begun.wait()
            process_of(runner).kill()
            await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
            assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
            assert runner.state == "starting the engine again: the engine's process was ended by SIGKILL"
            assert (runner.ready, runner.live) == (False, 0)
            with pytest.raises(NotReady, match="starting the engine again"):
                runner.submit(pack([endless("between")]), Inbox())
            await until(lambda: runner.ready, "another engine")
            assert (runner.restarts, runner.failure, runner.state) == (number, None, "ready")
            inbox = Inbox()
            runner.submit(pack([ask(f"after {number}", [3], max_tokens=4)]), inbox)
            await inbox.ended.wait()
            assert inbox.finishes == [Finish.LENGTH]


async def begun_or_ended(inbox: Inbox) -> None:
    """On a machine with much else to do, a process may be taken for one that stands still before it is made one."""
    await until(lambda: inbox.begun.is_set() or inbox.ended.is_set(), "an event")


async def test_one_that_stands_still_is_started_again() -> None:
    spec = FakeSpec()
    async with running(spec, step_seconds=0.4, again=lambda: EngineProcess(as_any(spec))) as (runner, engine):
        inbox = Inbox()
        runner.submit(pack([endless("a")]), inbox)
        await begun_or_ended(inbox)
        engine.suspend()
        await inbox.ended.wait()
        await until(lambda: runner.ready, "another engine")


@pytest.mark.parametrize(
    "broken", [FakeSpec(fault=MemoryError("cannot allocate")), FakeSpec(signal=signal.SIGKILL)], ids=["fault", "kill"]
)
async def test_a_loop_of_failures_has_an_end(broken: FakeSpec) -> None:
    made: list[EngineProcess] = []

    def again() -> EngineProcess:
        made.append(EngineProcess(as_any(broken)))
        return made[-1]

    async with running(again=again, restarts=Restarts((0.0, 0.0, 0.0))) as (runner, engine):
        engine.kill()
        failure = await runner.over()
        assert isinstance(failure, EngineFailed)
        assert runner.state == f"failed: {failure}"
        assert (len(made), runner.restarts) == (3, 3)


async def test_without_another_one_it_is_over_at_once() -> None:
    async with running() as (runner, engine):
        engine.kill()
        assert "SIGKILL" in str(await runner.over())
        assert runner.restarts == 0


async def test_one_that_waits_to_be_started_again_is_not_when_the_server_stops() -> None:
    made: list[object] = []
    async with running(again=as_any(lambda: made.append(None)), restarts=Restarts((1000.0,))) as (runner, engine):
        engine.kill()
        await until(lambda: runner.restarts, "the decision to start another")
    assert made == []


async def test_one_that_stands_still_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    heard = Connection.heard

    def look(connection: Connection) -> bool:
        looks.append(heard(connection))
        return looks[-1]

    monkeypatch.setattr(Connection, "heard", look)
    async with running(step_seconds=0.4) as (runner, engine):
        await until(lambda: looks[-6:] == [False] * 6, "six looks in vain")  # idle, it has nothing to tell
        assert runner.ready
        inbox = Inbox()
        runner.submit(pack([endless("a")]), inbox)
        await begun_or_ended(inbox)
        engine.suspend()
        await inbox.ended.wait()
        assert inbox.finishes == [Finish.ERROR]
        assert "did not end within 0.4 seconds" in runner.state
        assert await process_of(runner).ended(WAIT_SECONDS) == "was ended by SIGKILL"


async def test_stopping_kills_one_whose_step_does_not_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(EngineClient, "STOP_SECONDS", 0.1)
    inbox, step = Inbox(), tmp_path / "step"
    async with running(FakeSpec(slow=step)) as (runner, _):
        runner.submit(pack([endless("a")]), inbox)
        await until(step.exists, "the step")
    assert inbox.finishes == [Finish.ABORT]
    assert "did not end within 0.1 seconds; it is killed" in caplog.text


async def test_why_a_model_does_not_load_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    faults = [LoadError("no such model folder: /nowhere"), MemoryError("cannot allocate")]
    specs = [FakeSpec(fault=faults[0]), FakeSpec(fault=faults[1]), FakeSpec(signal=signal.SIGKILL)]
    async with AsyncExitStack() as stack:
        runners = [engine_client(spec) for spec in specs]
        for runner in runners:
            runner.start()
            stack.push_async_callback(runner.stop)
        await asyncio.gather(*(runner.loaded() for runner in runners), return_exceptions=True)
        assert [type(runner.failure) for runner in runners] == [LoadError, EngineFailed, EngineFailed]
        assert [runner.state for runner in runners] == [
            "failed: no such model folder: /nowhere",
            "failed: cannot allocate",
            "failed: the engine's process was ended by SIGKILL",
        ]
    # Beside it stands what libraries say while they are imported, where no test before has started an engine.
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    logged = json.loads(line)
    assert logged["message"] == "the model could not be loaded"
    assert logged["exception"][0] == "MemoryError"


async def test_a_load_is_given_up_when_the_server_stops() -> None:
    runner = engine_client(FakeSpec(seconds=600))
    runner.start()
    await runner.stop()
    assert not psutil.pid_exists(process_of(runner).pid)


# left behind -------------------------------------------------------------------------------------------------------


def test_they_end_by_themselves_whatever_they_do_when_their_server_is_killed(tmp_path: Path) -> None:
    """One that loads, one that has much to do, and one whose step does not end."""
    program = """
import asyncio, sys
from pathlib import Path
from server.engine.process import EngineProcess
from server.engine.client import EngineClient
from server.engine.connection import Connection
from server.engine.host import Inputs
from server.engine.wire import pack
from server.workers import launch
from tests.server.fakes import ask
from tests.server.in_process import FakeSpec
from tests.waiting import until

launch.PACKAGES = (*launch.PACKAGES, "tests")

async def main():
    step, events = Path(sys.argv[1]), []
    hosts = [EngineProcess(spec) for spec in (FakeSpec(seconds=600), FakeSpec(), FakeSpec(slow=step))]
    runners = [EngineClient(host, lambda: Inputs(None, None), max_live=9) for host in hosts]
    for runner in runners:
        runner.start()
    for runner in runners[1:]:
        await runner.loaded()
        runner.submit(pack([ask("a", [1], max_tokens=1_000_000)]), events.extend)
    await until(lambda: events and step.exists(), "the first steps")
    print(*(host.pid for host in hosts), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "step"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in server.stdout.readline().split()]
        assert len(processes) == 3
        server.kill()
        gone, alive = psutil.wait_procs(processes, timeout=WAIT_SECONDS)
    assert (len(gone), alive) == (3, [])


# what it is given --------------------------------------------------------------------------------------------------


def test_an_environment_without_secrets_and_with_what_torch_and_the_hub_read() -> None:
    kept = {
        "PATH": "/bin", "HOME": "/root", "HF_HOME": "/cache", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "LD_LIBRARY_PATH": "/l",
        "HTTPS_PROXY": "http://me:word@proxy:3128", "PYTORCH_CUDA_ALLOC_CONF": "x", "HF_ENDPOINT": "https://hub.example",
        "HF_TOKEN_PATH": "/secrets/token", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HUGGING_FACE_HUB_TOKEN": "hf_y",
        "HF_STORED_TOKENS_PATH": "/t", "HUGGINGFACE_HUB_CACHE": "/c", "ALL_PROXY": "http://me:word@proxy:3128",
        "SSL_CERT_FILE": "/ca.pem", "SSL_CERT_DIR": "/ca", "REQUESTS_CA_BUNDLE": "/ca.pem", "CURL_CA_BUNDLE": "/ca.pem",
        "XDG_CACHE_HOME": "/x", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "NO_PROXY": "localhost",
    }  # fmt: skip
    dropped = {
        "AUTOSTEER_KEYS": "[...]", "AUTOSTEER_AUDIT__URL": "postgresql://a:b@c/d", "OPENAI_API_KEY": "sk-x",
        "PGPASSWORD": "x", "DATABASE_URL": "postgresql://me:word@db/audit", "AWS_SECRET_ACCESS_KEY": "x",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=x", "GITHUB_TOKEN": "x", "DB_PASSWORD": "x", "SENTRY_DSN": "x",
    }  # fmt: skip
    assert engine_environment(kept | dropped) == kept


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_patiently_unless_told_otherwise(said: dict[str, str]) -> None:
    assert patient({"PATH": "/bin"}) == {"PATH": "/bin", "GOMP_SPINCOUNT": "1000"}
    assert patient(said) == said


def test_threads_are_those_of_the_plan_one_for_a_small_model_or_what_the_quota_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr("models.cores.machine_cores", lambda: 5)
    small, large = SMALL_MODEL - 1, SMALL_MODEL
    for threads, parameters in ((None, large), (3, large), (3, small), (None, small)):
        backbone = SimpleNamespace(info=SimpleNamespace(parameters=parameters))
        set_threads(as_any(SimpleNamespace(threads=threads)), as_any(backbone))
    assert asked == [5, 3, 3, 1]
