"""What an analyst sees after two repros, from the address that `make ui` prints."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.analyst import cell, expand, parents, runs, toggle_columns

pytestmark = pytest.mark.browser


def open_run(page: Any, parent: str, name: str) -> None:
    """Go to a run below a parent, or with the parent's name to itself."""
    if name != parent:
        expand(page, parent)
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def test_the_table_has_a_row_for_each_repro_and_below_it_what_ran(page, repository, keep):
    second, first = parents(page)
    assert re.fullmatch(r"main [0-9a-f]{7}", first)
    assert second == f"{first}* · train_cnn.optimizer.lr=0.02"
    expand(page, second)
    expand(page, first)
    names = [name for _, name in runs(page) if "baseline" not in name]
    assert names == [
        *(second, "evaluate@cnn", "train_cnn"),
        *(first, "evaluate@cnn", "train_cnn", "prepare@image"),
    ]
    toggle_columns(page, "test/accuracy", "cnn/test/accuracy")
    expected = json.loads((repository / "metrics/cnn.json").read_text())["accuracy"]
    shown = [run_id for run_id, name in runs(page) if "baseline" not in name]
    parent, evaluate, train, *rest = shown
    for run_id, column in (
        *((train, "metrics.`test/accuracy"), (evaluate, "metrics.`test/accuracy")),
        (parent, "metrics.`cnn/test/accuracy"),
    ):
        assert float(cell(page, run_id, column)) == pytest.approx(expected, abs=1e-3)
    assert cell(page, rest[-1], "metrics.`test/accuracy") == "-"
    assert cell(page, train, "attributes.`Dataset").startswith("data/image (")
    assert "Training" in cell(page, train, "attributes.`Dataset")
    assert cell(page, train, "attributes.`Models") == "train_cnn"
    keep("runs")


def test_the_dataset_filter_finds_the_runs_that_read_a_data_set(page):
    page.locator(".ag-row").first.wait_for()
    page.get_by_text("Datasets", exact=True).click()
    page.get_by_test_id("dataset-dropdown-data/image").first.click()
    page.keyboard.press("Escape")
    expect(page.get_by_text(re.compile("^4 matching runs$"))).to_be_visible()


def test_two_training_runs_are_compared_by_their_settings_and_curves(page, address, keep):
    for parent in parents(page):
        expand(page, parent)
    for run_id, name in runs(page):
        if name == "train_cnn":
            page.locator(f".ag-row[row-id='{run_id}'] .ag-selection-checkbox input").click()
    page.locator("button", has_text="Compare").first.click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    rate = page.get_by_role("row", name=re.compile(r"^optimizer\.lr")).first
    expect(rate).to_contain_text("0.004")
    expect(rate).to_contain_text("0.02")
    keep("comparison")

    # of more than ten runs the charts show the first ten
    stage = "searchFilter=tags.stage%20%3D%20%27train_cnn%27"
    page.goto(f"{address}&{stage}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    expect(page.get_by_role("heading", name="train/loss")).to_be_visible()
    # by colour: of each run there is a pale line too, for smoothing
    colours = "lines => new Set(lines.map(line => line.style.stroke)).size"
    lines = page.locator("svg .scatterlayer .js-line")
    for _ in range(100):
        if lines.evaluate_all(colours) == 2:
            break
        page.wait_for_timeout(100)
    assert lines.evaluate_all(colours) == 2
    assert all("L" in line.get_attribute("d") for line in lines.all())
    keep("charts")


def test_a_parent_tells_what_ran_and_what_was_reused_and_links_to_it(page, keep):
    second, first = parents(page)
    open_run(page, second, second)
    table = page.locator("table", has=page.get_by_role("columnheader", name="what"))
    rows = [re.split(r"\s+", line.inner_text().strip()) for line in table.locator("tr").all()]
    assert [line[:2] for line in rows[1:4]] == [
        ["prepare@image", "reused"], ["train_cnn", "ran"], ["evaluate@cnn", "ran"],
    ]  # fmt: skip
    assert len(rows) == 4
    keep("parent")
    with page.context.expect_page() as opened:
        table.get_by_role("link", name="prepare@image").click()
    expect(opened.value.get_by_role("heading", name="prepare@image")).to_be_visible()
    expect(opened.value.get_by_role("link", name=first, exact=True)).to_be_visible()
    opened.value.close()


def test_a_figure_among_the_artifacts_is_displayed(page, keep):
    open_run(page, parents(page)[0], "evaluate@cnn")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("cnn", exact=True).click()
    page.get_by_text("confusion.png", exact=True).click()
    figure = page.locator("img[src^='blob:']").first
    expect(figure).to_be_visible()
    assert figure.evaluate("image => image.naturalWidth") > 300
    keep("artifact")


def test_the_interactive_page_among_the_artifacts_answers_to_the_pointer(page, keep):
    open_run(page, parents(page)[0], "evaluate@cnn")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("cnn", exact=True).click()
    page.get_by_text("explore.html", exact=True).click()
    inside = page.frame_locator("iframe.mlflow-html-iframe")
    expect(inside.get_by_role("heading", name="cnn: its answers, to explore")).to_be_visible()
    inside.locator("#confusion .nsewdrag").hover()
    expect(inside.locator("#confusion .hoverlayer")).to_contain_text("of the true class")
    expect(inside.locator("#map .points path").nth(9)).to_be_attached()
    keep("explore")


def test_a_run_of_seconds_has_charts_of_the_machine(page, keep):
    open_run(page, parents(page)[0], "train_cnn")
    page.get_by_role("tab", name="System metrics").click()
    expect(page.get_by_role("heading", name="cpu_utilization_percentage")).to_be_visible()
    expect(page.locator("svg .scatterlayer .point").nth(2)).to_be_visible()
    keep("system")


def test_the_registered_model_has_its_aliases_and_the_decision(page, address, keep):
    page.goto(re.sub(r"#/.*\?", "#/models/image-classifier?", address))
    newest = page.get_by_role("row", name=re.compile("Version 2"))
    expect(newest.get_by_text("@ candidate")).to_be_visible()
    expect(page.get_by_text("@ champion")).to_have_count(1)
    expect(newest).to_contain_text("decision: version")
    keep("model")


def test_the_ui_asks_no_other_machine(page):
    here = ("http://127.0.0.1:", "data:", "blob:", "about:")
    page.wait_for_timeout(500)
    assert [url for url in page.asked if not url.startswith(here)] == []


def test_nothing_that_a_stage_logged_was_refused(repository: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    places = [found.experiment_id for found in client.search_experiments()]
    found = client.search_runs(places)
    assert len([run for run in found if "beside" not in run.data.tags]) == 7
    assert [run.data.tags["refused"] for run in found if "refused" in run.data.tags] == []
