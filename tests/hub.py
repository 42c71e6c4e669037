"""A hub on loopback that serves one folder as a model, and holds back the rest of its weights until it is let go."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST_BYTES = 11 * 2**20  # more than a chunk of the hub's client, which tells of whole ones


@dataclass
class Hub:
    """Where it is, and what lets the weights go on."""

    url: str
    go_on: threading.Event


@contextmanager
def hub(folder: Path, name: str) -> Iterator[Hub]:
    """Serve `folder` as the model `name` (owner/model)."""
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            place = self.path.partition("?")[0]
            file = folder / place.rpartition("/")[2]
            if place.startswith(f"/{name}/resolve/") and file.is_file():
                self._send(200, file.read_bytes(), body=body, held=file.suffix == ".safetensors")
            elif place.rstrip("/") in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                files = [{"rfilename": each.name} for each in folder.iterdir()]
                self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), body=body)
            elif place.startswith(f"/api/models/{name}/tree/") and place.endswith(COMMIT):
                sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
                tree = [{"type": "file", "path": each, "size": size, "oid": each} for each, size in sizes.items()]
                self._send(200, json.dumps(tree).encode(), body=body)
            else:
                self._send(404, b"", body=body, error="EntryNotFound")

        def _send(self, status: int, data: bytes, *, body: bool, held: bool = False, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if body:
                self.wfile.write(data[:FIRST_BYTES])
                if held:
                    go_on.wait()
                self.wfile.write(data[FIRST_BYTES:])

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_address[1]}", go_on)
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
