"""The image: its install steps alone, built without a daemon, built by Docker; each serves the demo model."""

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
from tests.operating.buildah import BASE, Buildah, confined, size_of
from tests.operating.programs import DOCKER, ROOT

TAG = "localhost/autosteer-server:test"

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
    venv, tools, app = tmp_path / "venv", tmp_path / "tools", tmp_path / "app"
    # As ARG gives them: empty. Where pip finds packages on this machine stays as it is. uv is told that there is no
    # network, so that it gets no torch and pip has to.
    here = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))}
    building = {"PATH": "/usr/bin:/bin", "VARIANT": "cpu", "TORCH_INDEX_URL": "", "PIP_INDEX_URL": "", **here}
    building |= {"PYTHON": str(Path(sys.executable).resolve()), "UV_OFFLINE": "1"}
    script = source / "docker" / "install.sh"
    said = ""
    for step in (
        ["dependencies", venv, tools],
        ["application", app, venv, tools],
        ["weights", tmp_path / "models", ""],
    ):
        done = subprocess.run(
            [script, *map(str, step)], cwd=source, env=building, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
        said += done.stderr
    assert "install.sh: uv got no CPU build of torch: it is taken from where pip takes everything" in said
    assert {each.name for each in (venv / "bin").iterdir()}.isdisjoint({"pip", "uv"})
    shutil.rmtree(source)
    shutil.rmtree(tools)
    environment = _environment(tmp_path, venv, app)
    serving = ["env", "-i", "-C", environment["HOME"], *(f"{name}={value}" for name, value in environment.items())]
    entry, command, health = (
        json.loads(re.search(r"\[.*\]", instructions(name)[0])[0])  # type: ignore[index]
        for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")
    )
    _serve_and_ask(serving, [*entry, *command], health, int(environment["AUTOSTEER_PORT"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0, reason="buildah's chroot needs root")
def test_the_image_is_built_without_a_daemon_and_serves(tmp_path: Path) -> None:
    """With Debian's buildah and debootstrap, as root. What is built is run as compose runs it."""
    started = time.monotonic()
    with Buildah(tmp_path / "buildah") as buildah:
        buildah.make_base()
        based = time.monotonic()
        said = buildah.build(TAG, "--build-arg", "VARIANT=cpu")
        built = time.monotonic()
        root, config = buildah.file_system(TAG), buildah.config(TAG)
        size, base = size_of(root), size_of(buildah.file_system(BASE))
        assert config["User"] == "10001:10001"
        for absent in ("opt/tools", "src", "opt/autosteer/bin/pip", "opt/autosteer/bin/uv", "usr/bin/gcc"):
            assert not (root / absent).exists(), absent
        assert not [*root.glob("opt/autosteer/lib/python3.*/site-packages/*/tests")]
        port = free_port()
        environment = {
            **dict(each.split("=", 1) for each in config["Env"]),
            "AUTOSTEER_HOST": "127.0.0.1",
            "AUTOSTEER_PORT": str(port),
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        serving = [*confined(root, config["User"]), "env", "-i", "-C", config["WorkingDir"], *variables]
        _, *health = config["Healthcheck"]["Test"]
        asked = time.monotonic()
        _serve_and_ask(serving, [*config["Entrypoint"], *config["Cmd"]], health, port)
        seconds = [round(b - a) for a, b in ((started, based), (based, built), (asked, time.monotonic()))]
        print(
            f"image {size / 1e9:.2f} GB, of these the base {base / 1e9:.2f} GB; seconds: base, build, asking: {seconds}"
        )
        if "is built for CUDA" not in said:
            assert size <= 1.5e9


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
    assert found["AUTOSTEER_MODEL"] == "${MODEL}"
    assert found["AUTOSTEER_REVISION"] == "${REVISION}"
    return {
        **found,
        "AUTOSTEER_MODEL": "",
        "AUTOSTEER_REVISION": "",
        "AUTOSTEER_HOST": "127.0.0.1",
        "AUTOSTEER_PORT": str(free_port()),
    }


def _serve_and_ask(serving: list[str], command: list[str], health: list[str], port: int) -> None:
    """Start the command behind the words `serving`, wait until the image's own check is content, do the main job."""
    server = subprocess.Popen([*serving, *command])
    try:
        end = time.monotonic() + 300
        while subprocess.run([*serving, *health], capture_output=True, check=False).returncode:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "not healthy after 300 s"
        _ask(f"http://127.0.0.1:{port}")
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
