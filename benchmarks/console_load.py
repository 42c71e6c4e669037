"""What open consoles cost the API: tokens a second of 16 clients, with three pages of Guard open and without.

Guard is the only page that asks while it is only open. The browser has as many empty pages open in the other rounds.
It drives Debian's chromium with Playwright.

Run: python -m benchmarks.console_load
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Annotated, NamedTuple

import typer
from playwright.sync_api import Browser, sync_playwright

from benchmarks.client import request_bytes
from benchmarks.load import closed_load
from benchmarks.workloads import text_only
from tests.end_to_end.processes import ServerProcess

CLIENTS, CONSOLES = 16, 3
TOKENS = 64  # of each answer, at most


class Speeds(NamedTuple):
    """Tokens in a second of the clock, and in one that the server's processes compute, which the browser does not."""

    second: float
    cpu_second: float


@contextmanager
def pages(browser: Browser, url: str) -> Iterator[None]:
    """So many pages that are open and have loaded."""
    contexts = [browser.new_context() for _ in range(CONSOLES)]
    for context in contexts:
        page = context.new_page()
        page.goto(url)
        if url.startswith("http"):
            page.locator("#now .big").wait_for()
    yield
    for context in contexts:
        context.close()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Each is one load with consoles, and one without.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 20,
) -> None:
    """Print the ratio of each round, and their median."""
    # The load's event loop is in a thread of its own: Playwright has one here.
    with ServerProcess() as server, sync_playwright() as playwright, ThreadPoolExecutor(1) as apart:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        bodies = [{**body, "model": server.model} for body in text_only(64, max_tokens=TOKENS)]
        requests = [request_bytes(server.url, body) for body in bodies]

        def speeds(url: str) -> Speeds:
            with pages(browser, url):
                load = partial(closed_load, clients=CLIENTS, count=10**9, seconds=seconds)
                before = server.computed_seconds
                found = apart.submit(load, server.url, requests).result()
                return Speeds(found.tokens_per_second, found.tokens / (server.computed_seconds - before))

        addresses = {"with": f"{server.url}/console/guard", "without": "about:blank"}
        speeds(addresses["without"])  # warm
        ratios: list[Speeds] = []
        for number in range(rounds):
            order = list(addresses)[:: 1 if number % 2 else -1]
            found = {name: speeds(addresses[name]) for name in order}
            ratios.append(Speeds(*(one / other for one, other in zip(found["with"], found["without"], strict=True))))
            print(
                f"with {found['with'].second:.0f}, without {found['without'].second:.0f} tokens/s: "
                f"{ratios[-1].second:.4f}; per CPU second of the server {ratios[-1].cpu_second:.4f}",
                flush=True,
            )
        browser.close()
    for name, each in (("tokens/s", 0), ("tokens per CPU second of the server", 1)):
        some = [ratio[each] for ratio in ratios]
        print(f"{name}, median of {rounds}: {median(some):.4f}, from {min(some):.4f} to {max(some):.4f}")


if __name__ == "__main__":
    typer.run(main)
