"""The shipped gateway and Prometheus configs around two real servers on loopback.

What is substituted is what only Docker's network and file system have: host names, ports, folders; and how often
Prometheus looks, so that tests need not wait.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import httpx2
import psutil
import yaml
from openai import OpenAI

from benchmarks.dashboards.queries import Prometheus
from server.access.keys import hash_key, new_key
from tests import plain_http
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess, end, free_port
from tests.operating.programs import DOCKER, program
from tests.waiting import WAIT_SECONDS, wait_until

MODEL = "autosteer-demo"
POLICIES = {"everyday": {}, "strict": {"mode": "block"}, "research": {"mode": "monitor", "expose_scores": True}}
SCRAPE_SECONDS = 2


def substituted(text: str, replacements: Mapping[str, str]) -> str:
    """The text with every one of these in it replaced; each must be there."""
    for shipped, here in replacements.items():
        assert shipped in text, f"{shipped!r} is not in the shipped file"
        text = text.replace(shipped, here)
    return text


def answers(url: str) -> bool:
    """Whether a GET gets 200."""
    try:
        return plain_http.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


class Background:
    """A program that runs until it is stopped; its output is in `log`."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        self._out = log.open("wb")
        self.process = subprocess.Popen(
            arguments, stdout=self._out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=log.parent
        )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def port(self) -> int:
        """Where it listens; 0: nowhere yet."""
        assert self.process.poll() is None, self.log
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return next((each.laddr.port for each in found if each.status == psutil.CONN_LISTEN), 0)

    def stop(self) -> None:
        end(self.process)
        self._out.close()


class Stack:
    """Gateway, two servers and Prometheus; use as a context manager. `folder` is for all that they write."""

    def __init__(self, folder: Path, *, watched: bool = True) -> None:
        self.folder = folder
        self.keys = {name: new_key() for name in POLICIES}
        self._watched = watched
        self._ports: dict[str, int] = {}
        self._programs = {name: program(name) for name in ("nginx", *(["prometheus"] if watched else []))}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.servers = [stack.enter_context(self._server(name)) for name in ("a", "b")]
            self._make_certificate()
            self.gateway = self._gateway()
            stack.callback(self.gateway.stop)
            if self._watched:
                watcher = self._prometheus()
                stack.callback(watcher.stop)
                wait_until(watcher.port, "Prometheus's port")
                self._ports["prometheus"] = watcher.port()
                wait_until(lambda: answers(f"{self.prometheus.url}/-/ready"), "Prometheus")
                self.wait_for_scrape()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # what tests ask of it ------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"https://localhost:{self._ports['gateway']}"

    @property
    def prometheus(self) -> Prometheus:
        return Prometheus(f"http://127.0.0.1:{self._ports['prometheus']}", rate_interval="60s")

    @property
    def trust(self) -> ssl.SSLContext:
        """Trusts the gateway's certificate, as it was made."""
        return ssl.create_default_context(cafile=str(self.folder / "tls" / "tls.crt"))

    def http(self) -> httpx.Client:
        """A client of the gateway."""
        return httpx.Client(verify=self.trust, timeout=60, base_url=self.url)

    def get(self, path: str, key: str = "everyday") -> httpx.Response:
        with self.http() as http:
            try:
                return http.get(path, headers={"authorization": f"Bearer {self.keys[key]}"})
            except httpx.TransportError:
                return httpx.Response(599)

    def client(self, key: str = "everyday", *, retries: int = 0) -> OpenAI:
        """The official client, through the gateway."""
        http = httpx2.Client(verify=self.trust, timeout=60)
        url = f"{self.url}/v1"
        return OpenAI(base_url=url, api_key=self.keys[key], max_retries=retries, http_client=http)

    def direct(self, server: ServerProcess, key: str = "everyday") -> OpenAI:
        """The official client, past the gateway."""
        return OpenAI(base_url=f"{server.url}/v1", api_key=self.keys[key], max_retries=0, timeout=60)

    def wait_for_scrape(self, count: int = 2) -> None:
        """Until Prometheus has looked at every server again, and evaluated its rules."""
        begun = time.time()

        def seen() -> bool:
            found = self.prometheus.now('timestamp(autosteer_ready{job="autosteer"})')
            return len(found) == len(self.servers) and min(each.values[-1] for each in found) > begun + count

        wait_until(seen, "a scrape of every server")

    @property
    def access_log(self) -> list[dict[str, object]]:
        """What the gateway has logged."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    # its parts -----------------------------------------------------------------------------------------------------

    def _server(self, name: str) -> ServerProcess:
        settings = yaml.safe_load((DOCKER / "settings" / "autosteer.yaml").read_text())
        settings["audit"]["url"] = f"file://{self.folder}/audit-{name}.jsonl"
        settings["policies"] = POLICIES
        settings["metrics_key"] = self._watched  # or else tests ask for metrics themselves
        settings["drain_seconds"] = WAIT_SECONDS  # the cores may have much else to do
        settings["shadow"] = {"name": "candidate", "target_fpr": 0.01, "answer_threshold": 0.9}
        settings["keys"] = [{"name": key, "hash": hash_key(value), "policy": key} for key, value in self.keys.items()]
        file = self.folder / f"server-{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        return ForkedServer(["--config", str(file)], environment={"OMP_NUM_THREADS": "1"})

    def _make_certificate(self) -> None:
        certificates = self.folder / "tls"
        certificates.mkdir()
        subprocess.run(
            [DOCKER / "nginx" / "certificate.sh"], env={**os.environ, "TLS_FOLDER": str(certificates)}, check=True
        )

    def _gateway(self) -> Background:
        """nginx once it answers. It takes no port 0: where another program took the port first, it gets another."""
        while True:
            self._ports["gateway"] = free_port()
            made = self._nginx()
            wait_until(lambda: made.process.poll() is not None or self.get("/ready").status_code == 200, "the gateway")  # noqa: B023  called here
            if made.process.poll() is None:
                return made
            made.stop()
            assert "Address already in use" in made.log, made.log

    def _nginx(self) -> Background:
        ports = [server.port for server in self.servers]
        config = self.folder / "nginx.conf"
        config.write_text(
            substituted(
                (DOCKER / "nginx" / "nginx.conf").read_text(),
                {
                    "/tmp/": f"{self.folder}/",  # first: the folder's own name may begin with it
                    "server-a:8000": f"127.0.0.1:{ports[0]}",
                    "server-b:8000": f"127.0.0.1:{ports[1]}",
                    "listen 8443 ssl": f"listen 127.0.0.1:{self._ports['gateway']} ssl",
                    " /tls/": f" {self.folder}/tls/",
                    "/dev/stdout": f"{self.folder}/access.log",
                },
            )
        )
        user = ["-g", "daemon off; user root;"] if os.geteuid() == 0 else ["-g", "daemon off;"]
        return Background(
            [self._programs["nginx"], "-p", str(self.folder), "-c", str(config), *user], self.folder / "nginx.log"
        )

    def _prometheus(self) -> Background:
        ports = [server.port for server in self.servers]
        config = self.folder / "prometheus.yml"
        config.write_text(
            substituted(
                (DOCKER / "prometheus" / "prometheus.yml").read_text(),
                {
                    "server-a:8000": f"127.0.0.1:{ports[0]}",
                    "server-b:8000": f"127.0.0.1:{ports[1]}",
                    "alertmanager:9093": "127.0.0.1:9",
                    "scrape_interval: 10s": f"scrape_interval: {SCRAPE_SECONDS}s",
                    "scrape_timeout: 5s": f"scrape_timeout: {SCRAPE_SECONDS}s",
                    "evaluation_interval: 15s": f"evaluation_interval: {SCRAPE_SECONDS}s",
                },
            )
        )
        (self.folder / "metrics.key").write_text(self.keys["everyday"])
        (self.folder / "rules.yml").write_text((DOCKER / "prometheus" / "rules.yml").read_text())
        return Background(
            [
                self._programs["prometheus"],
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder}/tsdb",
                "--web.listen-address=127.0.0.1:0",
            ],
            self.folder / "prometheus.log",
        )
