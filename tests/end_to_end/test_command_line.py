"""`autosteer serve` from the shell: one ready line, one line per mistake, a clean end."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIError

from models.demo import CHECKPOINT, GUARD
from tests import plain_http
from tests.end_to_end.commands import run, run_process
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess, user
from tests.waiting import WAIT_SECONDS, wait_until


@pytest.fixture(scope="module")
def started() -> Iterator[ServerProcess]:
    """A server as a user starts it."""
    with ServerProcess() as server:
        yield server


def test_ready_within_15_seconds_and_1_5_gigabytes(started: ServerProcess) -> None:
    """Of the processor: seconds of the clock are more where other work runs."""
    assert started.ready_cpu_seconds <= 15
    assert started.rss_bytes <= 1.5e9


@pytest.mark.chance
def test_the_ready_line_says_what_runs(started: ServerProcess) -> None:
    log = started.log
    for word in (started.url, "layer", "steer", "curl"):
        assert word in log, log


@pytest.mark.chance
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_to_try_gets_an_answer(started: ServerProcess) -> None:
    line = next(line for line in started.log.splitlines() if line.startswith("try it: "))
    done = subprocess.run(shlex.split(line.removeprefix("try it: ")), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "I see a red apple."


def test_unguarded_says_so_loudly(unguarded: ServerProcess) -> None:
    assert "off" in unguarded.log
    with ForkedServer(["--model", str(CHECKPOINT), "--guard", "none"]) as server:
        assert "UNGUARDED" in server.log
        server.client.chat.completions.create(model=server.model, messages=[user("hello")], max_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--guard", "/nowhere/guard"], "/nowhere/guard"),
        (["--mode", "shout"], "shout"),
        (["--threshold", "7"], "threshold"),
        (["--guard", "none", "--mode", "steer"], "guard"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    result = run("serve", "--port", "0", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_bundle_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    text = (GUARD / "guard.json").read_text()
    (tmp_path / "guard.safetensors").write_bytes((GUARD / "guard.safetensors").read_bytes())
    (tmp_path / "guard.json").write_text(
        text.replace("LlavaOnevisionForConditionalGeneration", "OtherForConditionalGeneration")
    )
    result = run("serve", "--port", "0", "--guard", str(tmp_path))
    assert result.returncode == 2
    assert "OtherForConditionalGeneration" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_guard_commands_are_there() -> None:
    """Each by its own name, beside `serve`: the bundled guard can be read, and a wrong word is one line."""
    shown = run("inspect", str(GUARD))
    assert shown.returncode == 0
    assert "LlavaOnevisionForConditionalGeneration" in shown.stdout
    result = run("fit", "--model", str(CHECKPOINT), "--pairs", "/nowhere.jsonl", "--out", "/nowhere/guard")
    assert result.returncode == 2
    assert "/nowhere.jsonl" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text())
    result = run("serve", "--port", "0", "--model", str(tmp_path))
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run_process("serve", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 2
    assert "in use" in result.stderr


@pytest.mark.chance
@pytest.mark.parametrize("after", ["restart", "exit"])
def test_a_server_whose_engine_is_killed_starts_it_again_or_ends(after: str) -> None:
    with ForkedServer(["--engine-failure", after, "--mode", "monitor"]) as server:
        endless = {"max_tokens": 1500, "logit_bias": {str(eos): -100 for eos in range(3)}, "stream": True}
        stream = server.client.chat.completions.create(  # type: ignore[call-overload]
            model=server.model, messages=[user("hello")], **endless
        )
        next(stream)
        server.engine.kill()
        with pytest.raises(APIError, match="failed while it generated") as caught:
            list(stream)
        assert caught.value.code == "engine_failed"
        if after == "restart":
            wait_until(lambda: plain_http.get(f"{server.url}/ready").status_code == 200, "another engine")
            server.client.chat.completions.create(model=server.model, messages=[user("hello")], max_tokens=4)
            assert server.metric("autosteer_engine_restarts_total") == 1
            server.process.terminate()
        assert server.process.wait(WAIT_SECONDS) == (0 if after == "restart" else 3)
        assert "was ended by SIGKILL" in server.log
        assert "Traceback" not in server.log


def ends_cleanly(server: ServerProcess, sig: signal.Signals) -> None:
    server.client.chat.completions.create(model=server.model, messages=[user("hello")], max_tokens=4)
    server.process.send_signal(sig)
    assert server.process.wait(WAIT_SECONDS) == 0
    assert "Traceback" not in server.log
    told = [line.split(": ", 1)[1] for line in server.log.splitlines() if "server.life" in line]
    assert "with the guard bundle" in told[0]
    told = [each for each in told if not each.startswith("loading the model: ")]  # how far it is, where it takes long
    assert [each.split(" ")[0] for each in told] == ["loading", "shutting", "0", "the"]


def test_an_interrupt_ends_the_server_cleanly() -> None:
    with ForkedServer() as server:
        ends_cleanly(server, signal.SIGINT)


def test_sigterm_ends_a_server_that_a_user_started_cleanly(started: ServerProcess) -> None:
    """The last test of `started`."""
    ends_cleanly(started, signal.SIGTERM)
