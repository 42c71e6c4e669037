"""Reviews by keyboard alone over a long audit log: from each key to the next record on the page, in a browser.

It drives Debian's chromium with Playwright.

Run: python -m benchmarks.console_reviews
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import orjson
import typer
from playwright.sync_api import sync_playwright

from benchmarks.estimate import percentile
from server.record.audit.record import AuditRecord, Outcome
from tests.end_to_end.processes import ServerProcess

NOTED, UNDONE = 10, 25  # of the reviews, one in so many
# Resolves with the milliseconds from the key to the frame after the next record is on the page.
PRESSED = """(key) => new Promise((done) => {
  const before = document.getElementById("said").textContent, began = performance.now();
  const seen = new MutationObserver(() => {
    if (document.getElementById("said").textContent === before) return;
    seen.disconnect();
    requestAnimationFrame(() => done(performance.now() - began));
  });
  seen.observe(document.getElementById("said"), { childList: true, subtree: true, characterData: true });
  document.getElementById("item").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""


def write_log(path: Path, records: int) -> None:
    """A log in which every tenth request was flagged."""
    now = datetime.now(UTC)
    with path.open("wb") as file:
        for number in range(records):
            flagged = number % 10 == 0
            text = f"request {number}: " + "what is in the picture and what can i do with it " * 8
            made = AuditRecord(
                time=now - timedelta(seconds=records - number),
                request_id=f"req-{number}",
                route="POST /v1/chat/completions",
                outcome=Outcome.COMPLETED,
                key="shop",
                policy="default",
                decision="steered" if flagged else "pass",
                score=0.9 if flagged else 0.1,
                threshold=0.5,
                content=orjson.dumps({"messages": [{"role": "user", "content": text}]}).decode(),
                record_id=f"{number:032x}",
            )
            file.write(orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE))


def main(
    records: Annotated[int, typer.Option(min=1000, help="In the log.")] = 100_000,
    reviews: Annotated[int, typer.Option(min=1, help="To give.")] = 200,
) -> None:
    """Print how long they took."""
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        log = Path(name) / "audit.jsonl"
        write_log(log, records)
        audit = {"AUTOSTEER_AUDIT__URL": f"file://{log}", "AUTOSTEER_AUDIT__CONTENT": "true"}
        with ServerProcess(environment=audit) as server:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"{server.url}/console/review")
            page.locator("#item:not([hidden])").wait_for(timeout=120_000)
            took = []
            for number in range(reviews):
                if number % NOTED == 0:
                    page.keyboard.press("n")
                    page.keyboard.type("seen")
                    page.keyboard.press("Enter")
                if number % UNDONE == UNDONE - 1:
                    page.evaluate(PRESSED, "u")
                took.append(page.evaluate(PRESSED, "12"[number % 2]))
            browser.close()
    print(f"{reviews} reviews over {records} records of {log.name}, from the key to the next record on the page, ms:")
    print(f"median {percentile(took, 50):.0f}, 95 of 100 within {percentile(took, 95):.0f}, most {max(took):.0f}")


if __name__ == "__main__":
    typer.run(main)
