"""The interactive page as a reader sees it: headless Chromium, desktop and phone."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.classification.data.examples import sample_rows
from pipeline.classification.evaluation import metrics
from pipeline.classification.evaluation.metrics import probabilities
from tests.evaluation.explored import CLASSES, HARM, hostile, write

pytestmark = pytest.mark.browser
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(params=SIZES)
def page(request, studies, tmp_path, chromium):
    """The page of a model whose classes and sentences would like to be markup."""
    study = studies["text"]
    file = write(study, tmp_path, **hostile(study))
    width, height = SIZES[request.param]
    opened = chromium.new_page(viewport={"width": width, "height": height})
    opened.asked, opened.complaints = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(file.as_uri())
    opened.locator("#calibration .points path").first.wait_for()
    yield opened
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=Path(folder) / f"explore-{request.param}.png", full_page=True)
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    opened.close()


def under_the_pointer(page, chart, mark):
    """The lines that the chart shows for a mark."""
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    label = page.locator(f"#{chart} .hovertext")
    label.wait_for()
    return label.locator(".line").all_text_contents()


def test_three_charts_are_drawn_and_nothing_overflows(page, studies):
    study = studies["text"]
    table = metrics.reliability(probabilities(study.on_test), study.test.labels)
    assert page.locator("#confusion .heatmaplayer image").count() == 1
    assert page.locator("#map .points path").count() == 80
    assert page.locator("#calibration .points path").count() == len(table.examples)
    assert page.locator("section h2").count() == 3
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator(".plotly-graph-div").all():
        assert chart.bounding_box()["width"] > 0.85 * min(width, 400)


def test_the_pointer_shows_what_is_behind_a_mark_and_names_are_no_markup(page, studies):
    study = studies["text"]
    lines = under_the_pointer(page, "map", page.locator("#map .trace").nth(1).locator("path").last)
    label = page.locator("#map .hovertext")
    assert lines[0].startswith("row ")
    row = int(lines[0].split()[1])
    assert study.test.labels[row] == 1
    assert lines[1] == f"true class: {CLASSES[1]}"
    assert lines[3] == f"<b>note</b>: {HARM[:26]}…"
    assert lines[4].startswith("<a href='javascript:<script>")
    assert label.locator("a, image, script").count() == 0
    assert page.evaluate("window.harm") is None
    assert CLASSES[1] in page.locator("#map .legendtext").all_text_contents()


def test_a_class_is_hidden_by_its_name_in_the_legend(page, studies):
    study = studies["text"]
    labels = study.test.labels[sample_rows(len(study.test), 80, 0)]
    page.locator("#map .legendtoggle").first.click()
    expect(page.locator("#map .points path")).to_have_count(int((labels == 1).sum()))
