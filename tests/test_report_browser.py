"""The report in a real browser: nothing leaves the page, nothing in it runs, and it fits a phone and a desk.

Skipped, never passed, where no Chromium is installed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from crystallized_safety.report import LabelledCompletion, write_report
from tests.example_summary import SENTENCE, example_summary

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
HOSTILE = '<script>document.title="pwned"</script>', "<img src=x onerror='document.title=\"pwned\"'>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    rows = [LabelledCompletion(f"p{i}", text, "harmful, κ −2", text, "comply", text) for i, text in enumerate(HOSTILE)]
    rows.append(LabelledCompletion("long", "?", "harmful, κ −2", "x" * 3000, "degenerate", "no spaces"))
    write_report(example_summary(), path, rows)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, report: Path) -> Iterator[webdriver.Chrome]:
    for log in ("performance", "browser"):
        browser.get_log(log)
    browser.get(report.as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def resize(page: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def open_everything(page: webdriver.Chrome) -> None:
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


def requested(page: webdriver.Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def test_it_renders_with_its_style_and_no_complaint(page: webdriver.Chrome):
    verdict = page.find_element(By.ID, "verdict")
    assert verdict.is_displayed()
    assert verdict.text == SENTENCE
    assert page.execute_script("return getComputedStyle(document.querySelector('.chips')).display") == "flex"
    assert page.get_log("browser") == []


def test_nothing_is_requested_but_the_file_itself(page: webdriver.Chrome, report: Path):
    open_everything(page)
    page.execute_async_script("setTimeout(arguments[0], 300)")
    urls = requested(page)
    assert urls[0] == report.as_uri()
    assert [url for url in urls[1:] if url != "data:,"] == []


def test_completions_are_closed_then_text(page: webdriver.Chrome):
    details = page.find_elements(By.TAG_NAME, "details")
    assert details
    assert [d for d in details if d.get_attribute("open")] == []
    texts = page.find_elements(By.CSS_SELECTOR, ".text")
    assert not any(text.is_displayed() for text in texts)
    open_everything(page)
    assert [text.text for text in texts[:2]] == list(HOSTILE)
    assert "pwned" not in page.title
    assert page.find_elements(By.CSS_SELECTOR, "script, img") == []


@pytest.mark.parametrize("width", [320, 400, 768, 1200, 1920])
def test_the_page_never_scrolls_sideways(page: webdriver.Chrome, width: int):
    resize(page, width)
    open_everything(page)
    scroll, client = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert scroll <= client <= width


@pytest.mark.parametrize("width", [400, 1200])
def test_figures_fit_and_their_text_stays_inside(page: webdriver.Chrome, width: int):
    resize(page, width)
    outside = page.execute_script(
        """return [...document.querySelectorAll('figure svg')].flatMap(svg => {
            const box = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const b = text.getBoundingClientRect();
                return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
            }).map(text => text.textContent);
        })"""
    )
    assert outside == []


def contrast(page: webdriver.Chrome, selector: str) -> float:
    """WCAG contrast between an element's colour and the page's background."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    one = luminance(page.execute_script(script, selector, "color"))
    two = luminance(page.execute_script(script, "body", "backgroundColor"))
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


def test_dark_and_light_differ_and_both_can_be_read(page: webdriver.Chrome):
    backgrounds = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        backgrounds.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        for selector in ("body", "figcaption", "figure svg", ".yes", ".partial", ".open", "tbody th", ".tag"):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        fill = page.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
        assert fill == page.execute_script("return getComputedStyle(document.querySelector('figure svg')).color")
    assert len(backgrounds) == 2


def test_printed_pages_are_light_and_keep_closed_details_closed(page: webdriver.Chrome):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert contrast(page, ".yes") >= 4.5
    assert not any(text.is_displayed() for text in page.find_elements(By.CSS_SELECTOR, ".text"))
