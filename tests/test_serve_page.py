"""The page in a real browser: search and its reasons, two texts compared, the keyboard, and hostile text shown as text."""

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, BackboneMaker, not_here
from serving import HOSTILE, RIGHT_TO_LEFT, make_index, make_model, running

from text2token.serve.app import create_app
from text2token.serve.service import open_service

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def model(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(make_backbone("llama_tied"), tmp_path_factory.mktemp("models") / "table")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        not_here("no browser: neither chromium nor google-chrome is on the path (apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        not_here("playwright is not installed: pip install 'text2token[dev]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield browser
        browser.close()


class Visit:
    """An open page, and everything that it asked for or complained about."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("dialog", lambda dialog: self.complaints.append("dialog"))
        self.page.goto(address)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found

    def until(self, expression: str) -> None:
        """Wait until it is true; the browser's own waiting evaluates strings, which the page does not allow."""
        ends = time.monotonic() + PATIENCE
        while not self.page.evaluate(expression):
            assert time.monotonic() < ends, expression
            time.sleep(0.02)

    def search(self, query: str) -> None:
        """Search, and wait for what is found: whatever stands there from the last search may hold the same words."""
        self.page.fill("#query", query)
        self.page.keyboard.press("Enter")
        self.done()

    def done(self) -> None:
        self.until("!document.querySelector('#hits').hasAttribute('aria-busy')")

    def width_fits(self) -> bool:
        fits: bool = self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        return fits

    def end(self, address: str) -> None:
        assert self.complaints == []
        assert all(url.startswith(address) for url in self.asked), self.asked
        assert self.page.title() == "text2token"
        self.page.close()


@pytest.fixture
def address(model: Path, tmp_path: Path) -> Iterator[str]:
    with running(create_app(open_service(str(model), make_index(model, tmp_path / "index")))) as address:
        yield address


def test_a_search_explains_its_hits_and_is_done_without_a_mouse(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    page.wait_for_selector("#query:focus")
    page.keyboard.type("a girl plays the guitar")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    assert page.locator("#found").inner_text().startswith("10 found in ")
    first = page.locator(".hit").first
    assert "Girl plays a guitar" in first.inner_text()
    assert {"girl", "guitar"} <= {word.lower() for word in first.locator("mark").all_inner_texts()}
    words = first.locator(".bars.words .word").all_inner_texts()
    assert {"girl", "guitar"} <= set(words)
    widths = [box["width"] for bar in first.locator(".bars.words .bar").all() if (box := bar.bounding_box())]
    assert widths == sorted(widths, reverse=True)
    assert max(widths) > 20
    assert first.locator(".bars.meaning .word").count() > 0
    emoji = page.locator(".hit", has_text="🐈").first
    assert {"girl", "plays", "guitar"} == set(emoji.locator("mark").all_inner_texts())

    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("[...document.querySelectorAll('.hit')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # rank by meaning
    visit.until("location.hash.includes('mode=dense')")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"

    page.locator(".modes label").last.click()
    visit.search("guitar long")
    assert "guitar+long" in page.evaluate("location.hash")
    long = page.locator(".hit", has_text="guitar very very").first
    long.wait_for()
    shown = len(long.locator(".text").inner_text())
    long.focus()
    page.keyboard.press("Enter")
    assert len(long.locator(".text").inner_text()) > 1900 > 600 > shown
    page.reload()
    page.wait_for_selector(".hit")
    assert page.input_value("#query") == "guitar long"
    visit.end(address)


def test_documents_can_be_filtered_by_a_field(browser: Any, address: str) -> None:
    visit = Visit(browser, f"{address}/#q=girl+guitar")
    page = visit.page
    page.wait_for_selector(".hit")
    everything = page.locator(".hit").count()
    assert not page.is_visible("#value")
    page.select_option("#field", "year")
    visit.done()
    page.fill("#value", "2001")
    page.keyboard.press("Enter")
    visit.done()
    assert 0 < page.locator(".hit").count() < everything
    places = visit.texts(".hit .place")
    assert all(int(place.split(":")[1]) % 3 == 1 for place in places), places
    page.reload()
    page.wait_for_selector(".hit")
    assert visit.texts(".hit .place") == places
    page.fill("#value", "1066")
    page.keyboard.press("Enter")
    visit.done()
    assert page.inner_text("#found") == "No such document where year is 1066."
    page.select_option("#field", "")
    visit.done()
    assert page.locator(".hit").count() == everything
    visit.end(address)


def test_two_texts_are_compared_as_they_are_typed(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    page.wait_for_selector("#query:focus")  # the page has begun, and takes the focus no more
    page.focus("#tab-search")
    page.keyboard.press("ArrowRight")
    page.fill("#text-a", "A girl is styling her hair.")
    page.wait_for_selector("#decoded-a .bars li")
    assert not page.is_visible("#shared")
    page.fill("#text-b", "A girl is styling her hair.")
    visit.until("document.querySelector('#cosine').textContent === '1.00'")
    assert visit.texts("#shared .word")
    assert "hair" in visit.texts("#decoded-a .word")
    page.fill("#text-b", "Close the socket, flush the buffer and release the lock.")
    visit.until("Number(document.querySelector('#cosine').textContent.replace('−', '-')) < 0.9")
    assert "socket" in visit.texts("#decoded-b li:not(.beyond) .word")
    page.fill("#text-a", "")
    page.fill("#text-b", " ")
    page.wait_for_selector("#invitation:visible")
    page.click("#example")
    page.wait_for_selector("#shared:visible")
    visit.end(address)


def test_a_hit_can_be_compared_with_its_query(browser: Any, address: str) -> None:
    visit = Visit(browser, f"{address}/#q=guitar&mode=sparse")
    visit.page.wait_for_selector(".hit")
    visit.page.click(".hit >> text=Compare with the query")
    visit.page.wait_for_selector("#shared .bars li")
    assert visit.page.input_value("#text-a") == "guitar"
    assert "guitar" in visit.page.input_value("#text-b")
    visit.end(address)


def test_hostile_text_is_shown_as_text(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page = visit.page
    for query in (HOSTILE, "'\"><svg onload=alert(1)>", "🎸" * 50, RIGHT_TO_LEFT, "\u202e\u0000 girl", "   "):
        visit.search(query)
        assert ("found" in page.inner_text("#found")) == bool(query.strip())
    visit.search("socket script")
    hostile = page.locator(".hit", has_text="<script>").first
    hostile.wait_for()
    assert HOSTILE in hostile.locator(".text").inner_text()
    assert page.locator("main script, main img").count() == 0
    visit.search("القطة")
    right_to_left = page.locator(".hit .text", has_text="القطة").first
    right_to_left.wait_for()
    assert right_to_left.evaluate("node => getComputedStyle(node).direction") == "rtl"
    visit.search("a" * 1_000_000)
    assert page.is_visible("#problem")
    assert "1,000,000 characters; at most 100,000" in page.inner_text("#problem")
    page.click("#tab-compare")
    page.fill("#text-a", "b" * 1_000_000)
    visit.until("document.querySelector('#problem').textContent.startsWith('Text A')")
    page.fill("#text-a", HOSTILE)
    page.fill("#text-b", RIGHT_TO_LEFT)
    page.wait_for_selector("#shared .bars li")
    assert not page.is_visible("#problem")
    visit.end(address)


def test_the_page_asks_for_the_key(browser: Any, model: Path) -> None:
    with running(create_app(open_service(str(model)), api_key="sesame")) as address:
        visit = Visit(browser, address)
        visit.page.wait_for_selector("#key:focus")
        assert not visit.page.is_visible("#problem")
        for key in ("wrong", "sesame"):
            visit.page.fill("#key", key)
            visit.page.keyboard.press("Enter")
            visit.page.wait_for_selector("#problem:visible" if key == "wrong" else "#text-a:visible")
        assert not visit.page.is_visible("#tabs")  # there is no index
        assert not visit.page.is_visible("#key")
        visit.page.fill("#text-a", "A girl is styling her hair.")
        visit.page.wait_for_selector("#decoded-a .bars li")
        visit.complaints = [said for said in visit.complaints if "401" not in said]  # the browser's own note
        visit.end(address)


@pytest.mark.parametrize("width", [360, 700, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_readable_at_every_width_light_and_dark(browser: Any, address: str, width: int, scheme: str) -> None:
    visit = Visit(browser, f"{address}/#q=girl+guitar", viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit.page.wait_for_selector(".hit")
    assert visit.width_fits()
    measured = json.loads(visit.page.evaluate(CONTRAST))
    assert measured
    assert min(measured.values()) >= 4.5, measured
    visit.page.click("#tab-compare")
    visit.page.click("#example")
    visit.page.wait_for_selector("#shared .bars li")
    assert visit.width_fits()
    assert min(json.loads(visit.page.evaluate(CONTRAST)).values()) >= 4.5
    unnamed = visit.page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(field => !field.labels.length).map(it => it.id)"
    )
    assert unnamed == []
    visit.end(address)


# the contrast of every visible text with the nearest painted ground behind it (WCAG 2.2, 1.4.3), the least per class
CONTRAST = """() => {
  const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor); if (colour.length < 4 || colour[3] > 0) return colour; }
    return [255, 255, 255]; };
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()) || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const name = `${node.tagName}.${node.className}`, ratio = (a + 0.05) / (b + 0.05);
    found[name] = Math.min(found[name] ?? 21, ratio);
  }
  return JSON.stringify(found);
}"""
