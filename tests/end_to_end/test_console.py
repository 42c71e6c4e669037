"""The console in a real browser, on a real server: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from models.demo import GUARD
from models.demo.world import Group, Scene, draw_picture, stream
from server.console.pages import page as rendered
from server.record.audit.record import AuditRecord, Outcome
from steering.held_out import HeldOut, HeldOutRow, Judged, save_held_out
from steering.manifest import load_manifest
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess, data_url, user
from tests.operating.programs import program

# What the page's policy refuses, and what its scripts complain of, is counted from before the first of them.
WATCH = "window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective))"
HOSTILE = (
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    "<style>*{display:none}</style>"
    "</textarea><svg onload=alert(1)>{{ 7 * 7 }}\x1b[31mred\u202egnp.exe\u2066\u200b<!--"
)
LONG = "w" * 10_000 + " " + (HOSTILE * 300)[:60_000].strip()
# What is shown to who is not in, or not yet: rendered as the server does, on a server that has let this visitor in.
OUTSIDE: dict[str, tuple[int, dict[str, Any]]] = {
    "sign_in": (401, {"message": ""}),
    "refused": (403, {"message": "Pages of other origins may not use the console.", "status": 403}),
    "waiting": (200, {"state": "loading the model", "served": None, "signed_in": False, "token": "", "here": "try"}),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console") / "audit.jsonl"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[ServerProcess]:
    """One with an audit log, and a shadow that says of itself that it was made with labels."""
    bundle = log.parent / "guards" / "next"
    shutil.copytree(GUARD, bundle)
    found = load_manifest(bundle)
    old, new = Judged(guard="3f1c07aa92de", threshold=0.5), Judged(guard=found.id, threshold=found.threshold)
    rows = [HeldOutRow(id=f"twin-{at}", harmful=False, old=0.997, new=0.02 + 0.01 * at) for at in range(4)]
    rows += [HeldOutRow(id=f"harm-{at}", harmful=True, old=1.0, new=0.98) for at in range(9)]
    save_held_out(
        bundle, HeldOut(old=old, new=new, rows=[*rows, HeldOutRow(id="lost", harmful=True, old=0.6, new=0.3)])
    )
    settings = {
        "AUTOSTEER_AUDIT__URL": f"file://{log}", "AUTOSTEER_AUDIT__CONTENT": "true",
        "AUTOSTEER_SHADOW__NAME": "next", "AUTOSTEER_SHADOW__GUARD": "guards/next",
    }  # fmt: skip
    with ForkedServer(["--token-scores"], settings, folder=log.parent) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = program("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Visit:
    """A page, and what went wrong on it."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def ask(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def answered(self, count: int = 1) -> None:
        """Wait until so many answers have come to their end."""
        expect(self.page.locator(".answer[data-verdict]")).to_have_count(count)
        expect(self.page.locator("#send")).to_be_visible()

    def check(self) -> None:
        assert self.errors == []
        assert self.page.evaluate("refused") == []

    def check_access(self) -> None:
        """What axe-core finds that is serious or critical."""
        found: Any = Axe().run(self.page).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], node["html"], node["any"]) for each in serious for node in each["nodes"]] == []


@pytest.fixture
def visit(server: ServerProcess, browser: Browser) -> Iterator[Visit]:
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        made = Visit(context.new_page())
        made.page.add_init_script(WATCH)
        made.page.on("pageerror", lambda error: made.errors.append(str(error)))
        made.page.goto(f"{server.url}/console")
        expect(made.page.locator("#facts")).to_contain_text("last token")  # the scripts have run
        yield made
        made.check()


def test_a_first_visitor_sees_a_refusal_and_why_after_one_click(visit: Visit) -> None:
    visit.check_access()
    visit.page.get_by_role("button", name="Harmful by its picture alone").click()
    visit.answered()
    assert visit.page.locator(".answer").get_attribute("data-verdict") == "steered"
    expect(visit.page.locator(".answer .words")).to_contain_text("sorry")
    threshold = load_manifest(GUARD).threshold
    expect(visit.page.locator("#verdict")).to_contain_text(f"score 1.000 is at or over the threshold {threshold:.3f}")
    expect(visit.page.locator("#heat canvas")).to_be_visible()
    visit.page.emulate_media(color_scheme="dark")
    visit.check_access()


def test_the_scores_on_the_page_are_the_engines(visit: Visit, server: ServerProcess) -> None:
    picture = draw_picture(Scene((Group("gun", "black", (4,)),)), stream("console", "gun"))
    visit.page.get_by_role("button", name="Harmful by its picture alone").click()
    visit.answered()
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": "how do i use this"},
    ]
    asked: Any = {"model": server.model, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    answer: Any = server.client.chat.completions.create(**asked, extra_body={"guard": {"scores": True}})
    expected = answer.token_scores["prompt"]["scores"]
    shown = visit.page.eval_on_selector_all("#tokens [data-place]", "all => all.map((each) => +each.dataset.score)")
    assert len(shown) == len(expected) == 91
    assert shown == pytest.approx(expected, abs=5e-4)
    assert visit.page.locator("#tokens .counted").count() == 1


def test_side_by_side_by_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.keyboard.type("how do i make a bomb")  # the field has the focus
    page.locator("#mode").focus()
    page.keyboard.type("side")
    page.locator("#text").focus()
    page.keyboard.press("Enter")
    visit.answered(3)
    answers = page.locator(".answer")
    assert [answers.nth(at).get_attribute("data-verdict") for at in range(3)] == ["monitored", "steered", "blocked"]
    expect(answers.nth(0)).to_contain_text("[placeholder]")
    expect(answers.nth(1)).not_to_contain_text("[placeholder]")
    page.locator("#tokens").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text("Token 1 “<|im_start|>”")
    visit.check_access()


def test_a_watched_answer_is_coloured_token_by_token(visit: Visit, server: ServerProcess) -> None:
    page = visit.page
    page.get_by_role("button", name="A harmless question").click()
    visit.answered()
    said = page.locator(".answer .said")
    expect(page.locator(".answer .words")).to_have_text("".join(said.all_text_contents()))
    asked: Any = {"model": server.model, "messages": [user("how do i make a cake")], "temperature": 0}
    answer: Any = server.client.chat.completions.create(**asked, extra_body={"guard": {"scores": True}})
    expected = [each["score"] for each in answer.choices[0].token_scores]
    shown = page.eval_on_selector_all(".answer .said", "all => all.map((each) => +each.dataset.score)")
    assert shown == pytest.approx(expected, abs=5e-4)


def test_whatever_is_written_is_text(visit: Visit) -> None:
    page = visit.page
    hostile = (HOSTILE * 10)[:1500]
    page.click("#more")
    page.fill("#system", HOSTILE)
    page.fill("#max_tokens", "8")
    page.evaluate("(text) => { document.getElementById('text').value = text }", hostile)
    page.press("#text", "Enter")
    visit.answered()
    assert page.locator(".asked p").inner_text() == hostile
    assert page.title() == "Try · Autosteer"
    assert page.locator("main script, main style, .turns svg, .tokens img").count() == 0
    assert "\\u202e" in page.locator("#tokens").inner_text() or "\u202e" not in page.locator("#tokens").inner_text()
    page.evaluate("(text) => { document.getElementById('text').value = text }", LONG)
    page.press("#text", "Enter")
    expect(page.get_by_role("alert")).to_contain_text("maximum context length")  # as the API says it
    assert page.locator(".asked p").nth(1).inner_text() == LONG
    assert page.title() == "Try · Autosteer"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_picture_is_pasted_and_dropped_and_nothing_is_wider_than_a_phone(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 360, "height": 740})
    picture = base64.b64decode(
        data_url(draw_picture(Scene((Group("apple", "red", (4,)),)), stream("x"))).partition(",")[2]
    )
    for event, where in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([name, where, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
              const kind = name === "paste" ? ClipboardEvent : DragEvent;
              document.getElementById("text").dispatchEvent(new kind(name, { [where]: data, bubbles: true }));
            }""",
            [event, where, list(picture)],
        )
    expect(page.locator("#pictures img")).to_have_count(2)
    page.get_by_role("button", name="Remove picture 2").click()
    visit.ask("what is in the picture?")
    visit.answered()
    expect(page.locator(".answer .words")).to_contain_text("apple")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    visit.check_access()


def test_the_guards_card_and_what_it_does_now(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Its harmful twin").click()
    visit.answered()
    page.get_by_role("link", name="Guard").click()
    expect(page.locator("#now .big")).to_contain_text("%")
    expect(page.locator("#layers canvas")).to_be_visible()
    expect(page.locator("#calibration canvas")).to_be_visible()
    visit.check_access()
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    visit.check_access()


def test_what_was_flagged_is_reviewed_by_keyboard_alone(visit: Visit, server: ServerProcess) -> None:
    page = visit.page
    hostile = "<img src=x onerror=alert(1)> how do i make a bomb"
    asked = {"model": server.model, "messages": [user("how do i make a bomb")], "guard": {"mode": "block"}}
    for _ in range(3):
        server.client.post("/chat/completions", body=asked, cast_to=object)
    page.get_by_role("link", name="Review").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#item")).to_be_focused()
    expect(page.locator("#said")).to_contain_text("bomb")
    visit.check_access()
    counts = page.locator("#counts")
    before = int(counts.inner_text().split()[0])
    page.keyboard.press("n")
    page.keyboard.type(hostile)
    page.keyboard.press("Enter")
    page.keyboard.press("2")
    expect(counts).to_contain_text(f"{before - 1} left")
    page.keyboard.press("1")
    expect(counts).to_contain_text(f"{before - 2} left")
    page.keyboard.press("u")
    expect(counts).to_contain_text(f"{before - 1} left")
    page.get_by_label("also what I have labelled").check()
    page.locator("#item").focus()
    expect(page.locator("#labels")).to_contain_text(f"anonymous: wrongly flagged — {hostile}")
    assert page.locator("main img").count() == 0
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    visit.check_access()


def test_whatever_was_logged_is_text_where_it_is_reviewed(visit: Visit, log: Path) -> None:
    page = visit.page
    asked = orjson.dumps({"messages": [{"role": HOSTILE, "content": LONG}]}).decode()
    names: dict[str, Any] = dict.fromkeys(("key", "policy", "mode", "guard", "route"), HOSTILE)
    made = AuditRecord(
        time=datetime.now(UTC), request_id="hostile", outcome=Outcome.COMPLETED, decision="blocked", score=0.987,
        threshold=0.5, content=asked, answer=orjson.dumps([LONG]).decode(), **names,
    )  # fmt: skip
    with log.open("ab") as file:
        file.write(orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE))
    page.goto(page.url + "/review?which=flagged")
    page.get_by_label("Score from").fill("0.987")
    page.get_by_label("to", exact=True).fill("0.987")
    expect(page.locator("#verdict")).to_contain_text("0.9870")
    assert page.locator("#said p").all_inner_texts() == [LONG, LONG]
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    note = (HOSTILE * 100)[:10_000]
    page.evaluate("(text) => { document.getElementById('note').value = text }", note)
    page.click("#right")
    expect(page.locator("#counts")).to_contain_text("0 left")
    page.get_by_label("also what I have labelled").check()
    page.locator("#labels").get_by_text("rightly flagged").wait_for()
    shown = page.locator("#labels").inner_text()
    assert shown.replace(" ", "").replace("\n", "").endswith(note.replace(" ", "").strip()[-200:])
    assert page.locator("main img, main script, main svg, main style").count() == 0
    assert page.title() == "Review · Autosteer"
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def logged(number: int, text: str, **fields: Any) -> bytes:
    """A flagged request of now, as a line of the log."""
    asked = orjson.dumps({"messages": [{"role": "user", "content": text}]}).decode()
    given = {"request_id": f"logged-{number}", "route": "POST /v1/x", "decision": "steered", "score": 0.997, **fields}
    made = AuditRecord(time=datetime.now(UTC), outcome=Outcome.COMPLETED, threshold=0.5, content=asked, **given)
    return orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE)


def test_the_next_guard_stands_beside_the_acting_one(visit: Visit, log: Path) -> None:
    page = visit.page
    texts = [
        "how do i stop a friend who wants to rob a bank",
        "how do i stop a friend who wants to make a bomb",
        HOSTILE,
    ]
    with log.open("ab") as file:
        for number, text in enumerate(texts):
            file.write(
                logged(number, text, record_id=f"twin-{number}", policy="taught", shadow="next", shadow_decision="pass")
            )
    page.goto(page.url + "/review?which=changed&since=168")
    expect(page.locator("#counts")).to_contain_text("3 left")
    expect(page.locator("#item")).to_be_focused()
    for left in (2, 1, 0):
        page.keyboard.press("2")
        expect(page.locator("#counts")).to_contain_text(f"{left} left")
    page.get_by_role("link", name="Teach").click()
    expect(page.locator("#labels")).to_contain_text("wrongly flagged")
    expect(page.locator("#tried tbody tr").nth(0)).to_contain_text("4 of 4 harmless")
    expect(page.locator("#tried tbody tr").nth(1)).to_contain_text("9 of 10 harmful")
    shown = page.locator(".flip").all_inner_texts()
    assert shown == [*texts, *["No text is kept of this request."] * 2]
    assert page.locator(".flips .chip").all_inner_texts() == ["mended"] * 4 + ["spoilt"]
    expect(page.locator("#week")).to_contain_text("reviewers say: 3 wrongly flagged")
    assert page.locator("main img, main script").count() == 0
    with page.expect_download() as download:
        page.get_by_role("link", name="labels.jsonl").click()
    rows = download.value.path().read_bytes().splitlines()
    assert {orjson.loads(row)["text"] for row in rows} >= {*texts}
    for scheme, width in (("dark", 1280), ("dark", 360), ("light", 360), ("light", 1280)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        visit.check_access()


def test_a_teach_that_cannot_be_read_says_so(visit: Visit) -> None:
    page = visit.page
    page.route("**/admin/teach", lambda route: route.abort())
    page.get_by_role("link", name="Teach").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator("main")).not_to_contain_text("Reading")


@pytest.mark.parametrize("name", OUTSIDE)
def test_who_is_not_in_finds_pages_that_are_as_accessible(visit: Visit, name: str) -> None:
    page = visit.page
    status, values = OUTSIDE[name]
    made = rendered(name, status, values)
    shown = {"status": status, "headers": dict(made.headers), "body": bytes(made.body)}
    page.route("**/console", lambda route: route.fulfill(**shown))
    page.route("**/ready", lambda route: route.fulfill(status=503))
    page.goto(page.url)
    expect(page.locator("main h1")).to_be_visible()
    for scheme, width in (("light", 1280), ("dark", 360)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        visit.check_access()


def test_a_page_that_is_out_of_date_and_a_server_that_fails_say_so(visit: Visit) -> None:
    page = visit.page
    page.evaluate("document.querySelector('meta[name=csrf]').content = 'stale'")
    visit.ask("hello")
    expect(page.get_by_role("alert")).to_contain_text("out of date")
    page.route("**/console/chat", lambda route: route.abort())
    visit.ask("hello again")
    expect(page.get_by_role("alert").nth(1)).to_contain_text("cannot be reached")
