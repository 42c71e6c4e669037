"""The console in a browser: first paint, bytes, what axe-core finds; and the pictures of docs/console.md.

python -m benchmarks.console --url http://127.0.0.1:8000 --shots docs/images
It drives Debian's chromium with Playwright.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

TURNS = 9
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
SIZES = "performance.getEntriesByType('resource').filter((e) => /js|css/.test(e.name)).map((e) => e.decodedBodySize)"


def opened(browser: Browser, url: str, **options: Any) -> Page:  # noqa: ANN401  as Playwright has them
    """A page of a browser that has seen nothing before, once its scripts have run."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **options).new_page()
    page.goto(f"{url}/console")
    page.wait_for_selector("#facts:not(:empty)")
    return page


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


def serious(page: Page) -> int:
    """How much axe-core finds that is serious or critical."""
    found: Any = Axe().run(page).response["violations"]
    return sum(each["impact"] in ("serious", "critical") for each in found)


def keep(page: Page, path: Path) -> None:
    """Write a picture of what is in sight."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(path, "WEBP", quality=82, method=6)


def main(
    url: Annotated[str, typer.Option(help="Of a server without keys.")],
    shots: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
) -> None:
    """Print the figures, and draw."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        paints = [opened(browser, url).evaluate(PAINT) for _ in range(TURNS)]
        print(f"first contentful paint: median {median(paints):.0f} ms, most {max(paints):.0f} ms of {TURNS}")
        pages = {
            "console-empty": opened(browser, url),
            "console-refused": asked(browser, url, "Harmful by its picture alone"),
            "console-side-by-side": side_by_side(browser, url),
            "console-guard": guard(browser, url),
            "console-review": review(browser, url),
            "console-passed-dark": asked(browser, url, "Harmless by its picture", color_scheme="dark"),
        }
        print(f"scripts and styles: {sum(pages['console-empty'].evaluate(SIZES))} bytes")
        for name, page in pages.items():
            print(f"{name}: axe-core, serious or critical: {serious(page)}")
            if shots is not None and not name.endswith("passed-dark"):
                keep(page, shots / f"{name}.webp")
        browser.close()


if __name__ == "__main__":
    typer.run(main)
