"""The page at `/` in a real browser, headless."""

import shutil

import pytest
from service import Served

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
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
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
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    assert "by sequential" in page.inner_text("#took")


def test_text_is_shown_as_text(page):
    """A prompt is no markup, nor is what the story makes of it."""
    page.evaluate("show({story: '<script>window.stolen = 1</script><img src=x onerror=window.stolen=1>', captions: "
                  "['<b>bold</b>'], panels: [''], method: 'm', times_s: {wait: 0, service: 1, response: 1}})")
    assert page.inner_text("#story").startswith("<script>") and page.inner_text("figcaption") == "<b>bold</b>"
    assert page.evaluate("window.stolen") is None


def test_a_refusal_is_shown(page):
    page.evaluate("document.getElementById('prompt').removeAttribute('maxlength')")
    page.fill("#prompt", "a" * 2000)
    page.click("#tell")
    page.wait_for_function("document.getElementById('error').textContent.includes('prompt')")
    assert page.is_enabled("#tell")
