"""While weights are fetched and read, `/ready` and the metrics tell how far that is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import psutil

from models import demo
from tests import plain_http
from tests.end_to_end.processes import clean_environment, command, end
from tests.exposition import metric_of
from tests.hub import hub
from tests.waiting import wait_until


def listening(process: subprocess.Popen[bytes]) -> int:
    """The port that a server listens on, long before it is ready; 0: none yet."""
    assert process.poll() is None
    found = psutil.Process(process.pid).net_connections("tcp")
    return next((each.laddr.port for each in found if each.status == psutil.CONN_LISTEN), 0)


def said(url: str) -> str:
    """What `/ready` says; nothing while nobody answers."""
    try:
        return plain_http.get(f"{url}/ready", timeout=10).text
    except httpx.TransportError:
        return ""


def shares(url: str) -> list[float]:
    text = plain_http.get(f"{url}/metrics", timeout=10).text
    return [metric_of(text, "autosteer_load_progress_ratio", stage=stage) for stage in ("download", "weights")]


def test_a_download_is_told_while_it_goes_on(tmp_path: Path) -> None:
    size = (demo.CHECKPOINT / "model.safetensors").stat().st_size
    with hub(demo.CHECKPOINT, "someone/demo") as source, (tmp_path / "log").open("wb") as log:
        environment = {"HF_ENDPOINT": source.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
        environment |= {"AUTOSTEER_LOG_FORMAT": "json"}
        process = subprocess.Popen(
            command("serve", "--port", "0", "--model", "someone/demo"),
            env=clean_environment(environment), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: listening(process) > 0, "the port")
            url = f"http://127.0.0.1:{listening(process)}"
            wait_until(lambda: "of the weights are fetched" in said(url), "the first bytes")
            words = f"loading the model: 10.5 of {size / 1e6:.1f} MB of the weights are fetched (74%)"
            wait_until(lambda: words in said(url), "what the hub has sent")
            assert shares(url) == [10 * 2**20 / size, 0]
            source.go_on.set()
            wait_until(lambda: '"ready"' in said(url), "the model")
            assert shares(url) == [1, 1]
        finally:
            end(process)
    # What libraries say while they are imported and load a model is in lines of the log too.
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert any(line["logger"] == "server.ready" for line in lines)
