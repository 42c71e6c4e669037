"""The Dockerfile's install steps, as they are, in an empty environment; what they install serves the demo model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from models.demo.dialogue import pairs
from models.demo.judge import refused
from tests.end_to_end.processes import free_port, user
from tests.operating.programs import DOCKER, ROOT

LINES = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text()).splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def test_every_file_that_is_copied_is_there_and_let_through() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for line in instructions("COPY"):
        if line.startswith("--from"):
            continue
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored


def test_it_does_not_run_as_root_and_has_no_default_package_index() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert {line for line in instructions("ARG") if "INDEX" in line} == {"TORCH_INDEX_URL=", "PIP_INDEX_URL="}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_install_steps_make_a_server_that_works(tmp_path: Path) -> None:
    """Only what is copied into the image is there, no variable but the build arguments, and no package."""
    source = tmp_path / "src"
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            *copied, target = line.split()
            for each in copied:
                _copy(ROOT / each, source / target.rstrip("/") if len(copied) == 1 else source / each)
    venv, app = tmp_path / "venv", tmp_path / "app"
    # As ARG gives them: empty. Where pip finds packages on this machine stays as it is.
    here = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))}
    building = {"PATH": "/usr/bin:/bin", "VARIANT": "cpu", "TORCH_INDEX_URL": "", "PIP_INDEX_URL": "", **here}
    building["PYTHON"] = str(Path(sys.executable).resolve())
    script = source / "docker" / "install.sh"
    for step in (["dependencies", venv], ["application", app, venv], ["weights", tmp_path / "models", ""]):
        done = subprocess.run(
            [script, *map(str, step)], cwd=source, env=building, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    assert not (venv / "bin" / "pip").exists()
    shutil.rmtree(source)
    _smoke(_environment(tmp_path, venv, app))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _environment(folder: Path, venv: Path, app: Path) -> dict[str, str]:
    """The image's ENV, with the folders that are elsewhere here."""
    found = dict(re.findall(r"(\w+)=(\S*)", instructions("ENV")[0]))
    # /tmp first: the other folders' names may begin with it
    places = {"/tmp": folder, "/opt/autosteer": venv, "/opt/app": app, "/models": folder / "models"}
    for place, here in ((place, str(path)) for place, path in places.items()):
        found = {name: value.replace(place, here) for name, value in found.items()}
    assert found["MODEL"] == "${MODEL}"
    assert found["AUTOSTEER_REVISION"] == "${REVISION}"
    return {**found, "MODEL": "", "AUTOSTEER_REVISION": "", "HOST": "127.0.0.1", "PORT": str(free_port())}


def _smoke(environment: dict[str, str]) -> None:
    """ENTRYPOINT and CMD, the health check, and the main job."""
    entry, command, health = (
        json.loads(re.search(r"\[.*\]", line)[0])  # type: ignore[index]
        for line in (instructions("ENTRYPOINT")[0], instructions("CMD")[0], instructions("HEALTHCHECK")[0])
    )
    program = shutil.which(entry[0], path=environment["PATH"])
    assert program is not None
    server = subprocess.Popen([program, *command], env=environment, cwd=environment["HOME"])
    python = shutil.which(health[0], path=environment["PATH"])
    assert python is not None
    try:
        end = time.monotonic() + 120
        while subprocess.run([python, *health[1:]], env=environment, capture_output=True, check=False).returncode:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "not healthy after 120 s"
        _ask(f"http://127.0.0.1:{environment['PORT']}")
    finally:
        server.terminate()
        assert server.wait(60) == 0


def _ask(url: str) -> None:
    """Harm is refused, its twin is answered, and the metrics are there."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    for pair in pairs(1, seed=77, split="test"):
        for example, harmful in [(pair.toxic, True), (pair.safe, False)]:
            images = [example.image] if example.image else []
            choice = client.chat.completions.create(
                model=model, messages=[user(example.question, *images)], temperature=0
            ).choices[0]
            assert (choice.finish_reason == "content_filter") == harmful
            assert refused(choice.message.content or "") == harmful
    assert httpx.get(f"{url}/metrics").status_code == 200


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def _no_engine() -> bool:
    return shutil.which("docker") is None or _docker("info").returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(_no_engine(), reason="no Docker engine answers")
def test_the_image_itself_is_built_and_serves() -> None:
    """As compose runs it: no privileges, a read-only root, a health check that the engine asks."""
    tag, name = "autosteer-server:test", f"autosteer-test-{os.getpid()}"
    arguments = [f"--build-arg={name}={os.environ.get(name, '')}" for name in ("TORCH_INDEX_URL", "PIP_INDEX_URL")]
    built = _docker("build", "-q", "-f", str(DOCKER / "Dockerfile"), "-t", tag, *arguments, str(ROOT))
    assert built.returncode == 0, built.stderr
    port = free_port()
    locked = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges:true"]
    started = _docker("run", "-d", "--name", name, *locked, "-p", f"127.0.0.1:{port}:8000", tag)
    try:
        assert started.returncode == 0, started.stderr
        end = time.monotonic() + 180
        while _docker("inspect", "-f", "{{.State.Health.Status}}", name).stdout.strip() != "healthy":
            assert time.monotonic() < end, _docker("logs", name).stderr
            time.sleep(1)
        _ask(f"http://127.0.0.1:{port}")
        assert _docker("exec", name, "id", "-u").stdout.strip() == "10001"
    finally:
        _docker("stop", "-t", "60", name)
        code = _docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip()
        _docker("rm", "-f", name)
    assert code == "0"
