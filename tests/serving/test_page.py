"""The page at `/` in a real browser, headless."""

import shutil
import threading

import pytest
from service import Served, until

from stlib import paths
from stlib.serving.rules import read_menu

ray = pytest.importorskip("ray")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def served(cluster):
    with Served() as one:
        yield one


@pytest.fixture
def page(served):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(served.url)
        yield page
        browser.close()


def test_a_prompt_becomes_four_panels(page):
    page.fill("#prompt", "a fox and a red balloon")
    page.click("#tell")
    page.wait_for_function("document.querySelectorAll('#strip figure').length == 4")
    page.wait_for_function("document.getElementById('took').textContent", timeout=60_000)
    panels = page.locator("#strip img")
    assert panels.count() == 4
    assert all(panels.nth(i).evaluate("image => image.complete && image.naturalWidth") == 128 for i in range(4))
    assert page.inner_text("#story") and "by parallel" in page.inner_text("#took")
    assert "drawing" in page.inner_text("#times") and "1 of 1" not in page.inner_text("#error")
    assert "replicas busy" in page.inner_text("#queue")


def test_the_menu_is_listed_and_a_method_of_it_chosen(page, served):
    page.wait_for_function("document.getElementById('method').options.length > 1")
    listed = page.evaluate("Array.from(document.getElementById('method').options, one => one.value)")
    assert listed == ["", *read_menu()]  # the first one leaves the choice to the service
    page.fill("#prompt", "a fox")
    page.select_option("#panels", "1")
    page.select_option("#method", "sequential")
    page.click("#tell")
    page.wait_for_function("document.getElementById('took').textContent", timeout=60_000)
    assert "by sequential" in page.inner_text("#took")


def test_text_is_shown_as_text(page):
    """A prompt is no markup, nor is what the story makes of it."""
    page.evaluate("prepare(1); show({story: '<script>window.stolen = 1</script><img src=x onerror=window.stolen=1>', "
                  "captions: "
                  "['<b>bold</b>'], panels: [''], method: 'm', times_s: {wait: 0, service: 1, response: 1}})")
    assert page.inner_text("#story").startswith("<script>") and page.inner_text("figcaption") == "<b>bold</b>"
    assert page.evaluate("window.stolen") is None


@pytest.mark.slow
def test_the_page_is_filmed_while_it_waits_draws_and_is_done(page, served, tmp_path):
    """Behind another job; its first two panels are there before the third. Pictures in build/page."""
    album = paths.BUILD / "page"
    album.mkdir(parents=True, exist_ok=True)
    ahead = threading.Thread(target=served.send, args=({"captions": ["a fox"] * 4, "steps": 30},))
    ahead.start()
    until(lambda: served.queue()["busy"] == 1)
    page.fill("#prompt", "a fox and a red balloon")
    page.select_option("#method", "sequential")
    page.click("#tell")
    page.wait_for_function("document.getElementById('wait').textContent.includes('place 1')")
    page.screenshot(path=album / "waiting.png")
    page.wait_for_function("document.querySelectorAll('#strip img').length == 2", timeout=60_000, polling=20)
    page.screenshot(path=album / "two_panels.png")
    assert page.locator("figure.open").count() == 2 and not page.inner_text("#took")
    page.wait_for_function("document.getElementById('took').textContent", timeout=60_000)
    page.screenshot(path=album / "whole.png")
    assert page.locator("#strip img").count() == 4
    ahead.join()


def test_a_refusal_is_shown(page):
    page.evaluate("document.getElementById('prompt').removeAttribute('maxlength')")
    page.fill("#prompt", "a" * 2000)
    page.click("#tell")
    page.wait_for_function("document.getElementById('error').textContent.includes('prompt')")
    assert page.is_enabled("#tell")
