"""The report as a reader sees it: headless Chromium, desktop, phone and paper."""

import os
from pathlib import Path

import pytest

from pipeline.report import build

pytestmark = pytest.mark.browser
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def page(sources, chromium):
    """The opened report, and every address it asked for."""
    build(sources)
    opened = chromium.new_page()
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.complaints = []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.goto(sources.html.as_uri())
    yield opened
    opened.close()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_overflows_and_every_figure_is_drawn(page, size):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("node => node.complete && node.naturalWidth > 0")
        assert image.bounding_box()["width"] > 150
    small = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(node => node.textContent.trim()"
        " && parseFloat(getComputedStyle(node).fontSize) < 12).length"
    )
    assert small == 0
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"report-{size}.png", full_page=True)


def test_the_page_asks_the_network_for_nothing(page):
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.complaints == []


def test_the_headline_is_a_list_of_cards_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    row = page.locator("table.cards tbody tr").first
    cells = [cell.bounding_box() for cell in row.locator("td").all()]
    tops = [cell["y"] for cell in cells]
    assert tops == sorted(tops)
    assert len(set(tops)) == len(tops)
    assert all(cell["x"] >= 0 and cell["x"] + cell["width"] <= 390 for cell in cells)


def test_it_prints(page, tmp_path):
    path = tmp_path / "report.pdf"
    page.pdf(path=path)
    assert path.read_bytes()[:5] == b"%PDF-"
