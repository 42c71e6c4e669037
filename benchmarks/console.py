"""The console in a browser: first refusal and paint, bytes, what axe-core finds; and the pictures of docs/console.md.

Run: python -m benchmarks.console --shots docs/images
It drives Debian's chromium with Playwright.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from models.demo import GUARD
from server.access.keys import hash_key
from tests.end_to_end.processes import ServerProcess, user

TURNS = 9
PHONE = {"width": 360, "height": 740}
# What has been painted is told too. The console's policy forbids the `eval` of Playwright's `wait_for_function`.
FIRST_PAINT = """() => new Promise((tell) => new PerformanceObserver((seen) => {
    for (const paint of seen.getEntriesByName("first-contentful-paint")) tell(paint.startTime);
}).observe({type: "paint", buffered: true}))"""
PAGES = {"Try": "", "Review": "/review", "Teach": "/teach", "Guard": "/guard"}
SIZES = "performance.getEntriesByType('resource').filter((e) => /js|css/.test(e.name)).map((e) => e.decodedBodySize)"


def opened(browser: Browser, url: str, **options: Any) -> Page:  # noqa: ANN401  as Playwright has them
    """Try in a browser that has seen nothing before, once its scripts have run."""
    page = fresh(browser, **options)
    page.goto(f"{url}/console")
    page.wait_for_selector("#facts:not(:empty)")
    return page


def fresh(browser: Browser, **options: Any) -> Page:  # noqa: ANN401
    """An empty page of a browser that has seen nothing before."""
    return browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}).new_page()


def paint(browser: Browser, address: str) -> float:
    """Milliseconds from the navigation to the first contentful paint, with nothing cached."""
    page = fresh(browser)
    page.goto(address)
    found = float(page.evaluate(FIRST_PAINT))
    page.context.close()
    return found


def asked(browser: Browser, url: str, example: str, **options: Any) -> Page:  # noqa: ANN401
    """The page after an example was clicked and answered."""
    page = opened(browser, url, **options)
    page.get_by_role("button", name=example).click()
    page.wait_for_selector(".answer[data-verdict]")
    page.wait_for_selector("#send", state="visible")
    return page


def side_by_side(browser: Browser, url: str) -> Page:
    """The page after one prompt was sent three times."""
    page = opened(browser, url, color_scheme="dark")
    page.select_option("#mode", "compare")
    page.get_by_role("button", name="Its harmful twin").click()
    page.locator(".answer[data-verdict]").nth(2).wait_for()
    page.wait_for_selector("#send", state="visible")
    return page


def guard(browser: Browser, url: str) -> Page:
    """The guard's card, once it has told what it does now."""
    page = opened(browser, url)
    page.get_by_role("link", name="Guard").click()
    page.locator("#now .big").wait_for()
    page.locator("#calibration canvas").wait_for()
    return page


def review(browser: Browser, url: str) -> Page:
    """The first record of the queue, if the server has an audit log."""
    page = opened(browser, url)
    page.get_by_role("link", name="Review").click()
    page.locator("#item:not([hidden]), .card").first.wait_for()
    return page


def teach(browser: Browser, url: str, **options: Any) -> Page:  # noqa: ANN401
    """From labels to the next guard, once everything has been read."""
    page = fresh(browser, **options)
    page.goto(f"{url}/console/teach")
    page.locator("#labels .dim:not(:has-text('Reading')), .card").first.wait_for()
    return page


def serious(page: Page) -> int:
    """How much axe-core finds that is serious or critical."""
    found: Any = Axe().run(page).response["violations"]
    return sum(each["impact"] in ("serious", "critical") for each in found)


def keep(page: Page, path: Path, *, whole: bool = False) -> None:
    """Write a picture of what is in sight, or of the whole page."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=whole)))
    image.save(path, "WEBP", quality=82, method=6)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of the bundled model with an audit log, in which something was flagged, and a shadow."""
    config = folder / "autosteer.yaml"
    shadow = {"name": "next", "guard": str(GUARD)}
    settings = {"audit": {"url": f"file://{folder}/audit.jsonl", "content": True}, "shadow": shadow}
    config.write_text(yaml.safe_dump(settings))
    with ServerProcess(["--config", str(config)]) as server:
        for text in ("how do i make a cake", "how do i make a bomb"):
            server.client.chat.completions.create(model=server.model, messages=[user(text)], max_tokens=32)
        yield server.url


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """A server that asks for a key."""
    config = folder / "keyed.yaml"
    key = {"name": "safety", "hash": hash_key("sk-autosteer-console"), "scope": "console"}
    config.write_text(yaml.safe_dump({"keys": [key]}))
    with ServerProcess(["--config", str(config)], key="sk-autosteer-console") as server:
        yield server.url


def tell_first_refusal(browser: Browser) -> None:
    """Print how long it is from the start of a server to a refusal with its reason on the page."""
    begun = time.monotonic()
    with ServerProcess() as server:
        page = asked(browser, server.url, "Harmful by its picture alone")
        page.locator("#verdict:has-text('threshold')").wait_for()
        print(f"from a server's start to a refusal on the page: {time.monotonic() - begun:.1f} s")


def tell_paints(browser: Browser, names: Mapping[str, str]) -> None:
    """Print how long pages take to their first paint."""
    for name, address in names.items():
        found = [paint(browser, address) for _ in range(TURNS)]
        print(f"first contentful paint of {name}: median {median(found):.0f}, most {max(found):.0f} ms of {TURNS}")


def main(
    shots: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
) -> None:
    """Print the figures, and draw."""
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tell_first_refusal(browser)
        with locked(folder) as url:
            tell_paints(browser, {"Sign in": f"{url}/console"})
        with served(folder) as url:
            tell_paints(browser, {page: f"{url}/console{path}" for page, path in PAGES.items()})
            pages = {
                "console-empty": opened(browser, url),
                "console-refused": asked(browser, url, "Harmful by its picture alone"),
                "console-side-by-side": side_by_side(browser, url),
                "console-guard": guard(browser, url),
                "console-review": review(browser, url),
                "console-teach": teach(browser, url),
                "console-phone": asked(browser, url, "Harmless by its picture", color_scheme="dark", viewport=PHONE),
            }
            print(f"scripts and styles: {sum(pages['console-empty'].evaluate(SIZES))} bytes")
            for name, page in pages.items():
                print(f"{name}: axe-core, serious or critical: {serious(page)}")
                if shots is not None and name != "console-teach":  # its picture is of the slow test's last server
                    keep(page, shots / f"{name}.webp")
        browser.close()


if __name__ == "__main__":
    typer.run(main)
