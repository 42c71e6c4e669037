"""`python -m benchmarks.dashboards write`: the JSON for Grafana. `draw`: pictures, from a load on real servers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.dashboards.boards import DASHBOARDS
from benchmarks.dashboards.draw import draw as draw_dashboard
from benchmarks.dashboards.grafana import grafana_json

ROOT = Path(__file__).parents[2]
RATE_SECONDS = 20
app = typer.Typer(add_completion=False, help="The dashboards of docker/grafana.")


@app.command()
def write(out: Annotated[Path, typer.Option(help="Folder.")] = ROOT / "docker" / "grafana") -> None:
    """Write the dashboards for Grafana."""
    for name, dashboard in DASHBOARDS.items():
        (out / f"{name}.json").write_text(grafana_json(dashboard))


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="Folder.")] = ROOT / "docs" / "images",
    requests: Annotated[int, typer.Option(help="Requests of the load.")] = 600,
) -> None:
    """Start gateway, servers and Prometheus on loopback, send a healthy load, and draw every panel."""
    from tests.operating.load import HEALTHY, run_scripted_load
    from tests.operating.stack import Stack

    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        started = time.time()
        run_scripted_load(stack, requests, HEALTHY)
        stack.wait_for_scrape()
        prometheus = replace(stack.prometheus, rate_interval=f"{RATE_SECONDS}s")  # the load lasts for a minute or two
        begin = started + RATE_SECONDS  # rates before that are of a handful of requests
        for name, dashboard in DASHBOARDS.items():
            draw_dashboard(dashboard, prometheus, begin, time.time(), out / f"dashboard-{name}.png")


if __name__ == "__main__":
    app()
