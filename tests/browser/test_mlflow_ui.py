"""What an analyst sees after two repros, from the address that `make ui` prints."""

import io
import json
import re
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from playwright.sync_api import expect

from pipeline.task import tasks
from tests.browser.analyst import cell, expand, parents, runs, toggle_columns
from tests.conftest import stages_of

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # a busy machine takes its time to draw
STAGES = sorted(["report", *(stage for task in tasks() for stage in stages_of(task.about))])
RAN_AGAIN = ["report", "evaluate@cnn", "train_cnn"]  # the newest first
MODELS = ["cnn", "transformer", "rnn"]
PLOT = ".plot-container"  # its parent has the numbers, but at times no width or class


def open_run(page: Any, parent: str, name: str) -> None:
    """Go to a run below a parent, or with the parent's name to itself."""
    if name != parent:
        expand(page, parent)
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def curves(lines: Any) -> int:
    """How many lines differ: MLflow draws each twice, and two runs may have the same colour."""
    found: int = lines.evaluate_all("all => new Set(all.map(line => line.getAttribute('d'))).size")
    return found


def compare_the_cnns(page: Any) -> list[str]:
    """Tick the two trainings of the CNN and compare them; returns their ids, the newest first."""
    for parent in parents(page):
        expand(page, parent)
    trainings = [run_id for run_id, name in runs(page) if name == "train_cnn"]
    for run_id in trainings:
        page.locator(f".ag-row[row-id='{run_id}'] .ag-selection-checkbox input").click()
    page.locator("button", has_text="Compare").first.click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    return trainings


def test_the_table_has_a_row_for_each_repro_and_below_it_what_ran(page, repository, keep):
    page.set_viewport_size({"width": 1760, "height": 1200})  # all of it
    second, first = parents(page)
    assert re.fullmatch(r"main [0-9a-f]{7}", first)
    assert second == f"{first}* · train_cnn.optimizer.lr=0.02"
    expand(page, second)
    expand(page, first)
    shown = [(run_id, name) for run_id, name in runs(page) if "baseline" not in name]
    start = 1 + len(RAN_AGAIN)
    assert [name for _, name in shown[: start + 1]] == [second, *RAN_AGAIN, first]
    assert sorted(name for _, name in shown[start + 1 :]) == STAGES
    again, before = (
        {name: run_id for run_id, name in part} for part in (shown[:start], shown[start:])
    )

    toggle_columns(page, "test/loss", *(f"{model}/test/loss" for model in MODELS), "Source")

    def loss(run_id: str, of: str = "") -> float:
        return float(cell(page, run_id, f"metrics.`{of}test/loss"))

    latest = {**before, **again}
    for model in MODELS:
        last = json.loads((repository / f"metrics/{model}.json").read_text())["loss"]
        assert loss(latest[f"evaluate@{model}"]) == pytest.approx(last, rel=1e-3)
        assert loss(again[second], f"{model}/") == pytest.approx(last, rel=1e-3)
        assert loss(before[first], f"{model}/") == loss(before[f"evaluate@{model}"])
    assert loss(before["train_cnn"]) != loss(again["train_cnn"]) == loss(again["evaluate@cnn"])
    assert cell(page, before["prepare@image"], "metrics.`test/loss") == "-"
    for training, data in (
        ("train_cnn", "data/image"),
        ("finetune_transformer", "data/text"),
        ("train_rnn", "data/audio"),
    ):
        assert cell(page, before[training], "attributes.`Dataset").startswith(f"{data} (")
        assert "Training" in cell(page, before[training], "attributes.`Dataset")
        assert cell(page, before[training], "attributes.`Models") == training
    keep("runs")


def test_the_dataset_filter_finds_the_runs_that_read_a_data_set(page):
    page.locator(".ag-row").first.wait_for()

    def tick(data: str) -> None:
        page.get_by_role("combobox", name=re.compile("^Datasets")).click()
        page.get_by_test_id(f"dataset-dropdown-{data}").first.click()
        page.keyboard.press("Escape")

    for data, readers in (
        ("data/image", 2 * ["report", "evaluate@cnn", "train_cnn"]),
        ("data/text", ["report", "report", "evaluate@transformer", "finetune_transformer"]),
        ("data/audio", ["report", "report", "evaluate@rnn", "train_rnn"]),
    ):
        tick(data)
        expect(page.get_by_text(re.compile(f"^{len(readers)} matching runs$"))).to_be_visible()
        expect(page.get_by_role("link", name=readers[-1])).not_to_have_count(0)
        assert [name for _, name in runs(page)] == readers
        tick(data)


def test_two_training_runs_are_compared_by_their_settings(page, store, keep):
    trainings = compare_the_cnns(page)
    rate = page.get_by_role("row", name=re.compile(r"^optimizer\.lr")).first
    expect(rate).to_contain_text("0.004")
    expect(rate).to_contain_text("0.02")

    page.get_by_role("tab", name="Scatter Plot").click()
    for axis, name in (("X-axis:", "optimizer.lr"), ("Y-axis:", "train/loss")):
        page.get_by_label(axis).click()
        page.get_by_role("option", name=name, exact=True).click()
    chart = page.get_by_role("tabpanel", name="Scatter Plot").locator(PLOT)
    expect(chart.locator(".ytitle")).to_have_text("train/loss")
    losses = [store.get_run(run_id).data.metrics["train/loss"] for run_id in trainings]
    (points,) = chart.evaluate("plot => plot.parentElement.data.map(of => [of.x, of.y])")
    assert points == [["0.02", "0.004"], losses]
    # WebGL draws the points, so they are no elements; all else of the chart is grey
    picture = matplotlib.image.imread(io.BytesIO(chart.locator(".main-svg").first.screenshot()))
    columns = (np.ptp(picture[..., :3], axis=2) > 0.2).any(axis=0)
    assert np.count_nonzero(np.diff(columns.astype(int)) == 1) == len(trainings)
    keep("comparison")


def test_from_a_comparison_a_click_on_a_metric_leads_to_the_curves(page, store, keep):
    trainings = compare_the_cnns(page)
    names, values = (page.locator(".ReactVirtualized__Grid").nth(part) for part in range(2))
    metric = names.get_by_role("link", name="train/loss", exact=True)
    values.hover()
    # MLflow moves the names when the values move again: to the end, and a bit back
    for way in (10_000, -40) * 20:
        page.mouse.wheel(0, way)
        page.wait_for_timeout(200)
        if metric.count():
            break
    metric.click()
    expect(page.get_by_role("link", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()

    points = {
        run_id: [(at.step, at.value) for at in store.get_metric_history(run_id, "train/loss")]
        for run_id in trainings
    }
    assert all(len(of_run) > 2 for of_run in points.values())
    page.get_by_test_id("show-point-toggle").click()
    chart = page.locator(PLOT)
    expect(chart.locator(".point")).to_have_count(sum(map(len, points.values())))
    assert curves(chart.locator(".js-line")) == 2
    drawn = chart.evaluate("plot => plot.parentElement.data.map(of => [of.uuid, of.x, of.y])")
    assert {run_id for run_id, _, _ in drawn} == set(trainings)
    for run_id, steps, losses in drawn:
        assert list(zip(steps, losses, strict=True)) == points[run_id]
    for run_id in trainings:
        step, loss = points[run_id][-1]
        expect(page.locator(f"[data-row-key='{run_id}']")).to_contain_text(f"{loss} (step={step})")
    keep("curves")


def test_the_curves_of_training_runs_are_charts_of_the_runs_table_too(page, address, keep):
    for parent in parents(page):  # of a run that the table does not show there is no curve
        expand(page, parent)
    # of more than ten runs the charts show the first ten
    stage = "searchFilter=tags.stage%20%3D%20%27train_cnn%27"
    page.goto(f"{address}&{stage}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    expect(page.get_by_role("heading", name="train/loss")).to_be_visible()
    lines = page.locator("svg .scatterlayer .js-line")
    for _ in range(100):
        if curves(lines) == 2:
            break
        page.wait_for_timeout(100)
    assert curves(lines) == 2
    assert all("L" in line.get_attribute("d") for line in lines.all())
    keep("charts")


def test_a_parent_tells_what_ran_and_what_was_reused_and_links_to_it(page, keep):
    second, first = parents(page)
    open_run(page, second, second)
    page.get_by_text("Show more", exact=True).click()
    table = page.locator("table", has=page.get_by_role("columnheader", name="what"))
    rows = [re.split(r"\s+", line.inner_text().strip()) for line in table.locator("tr").all()]
    assert sorted(stage for stage, *_ in rows[1:]) == STAGES
    for stage, what, *_ in rows[1:]:
        assert what == ("ran" if stage in RAN_AGAIN else "reused"), stage
    expect(page.get_by_role("link", name="report", exact=True)).to_have_count(2)  # a child too
    keep("parent")
    with page.context.expect_page() as opened:
        table.get_by_role("link", name="train_rnn").click()
    expect(opened.value.get_by_role("heading", name="train_rnn")).to_be_visible()
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


def test_each_registered_model_has_its_aliases_and_the_decision(page, address, store, keep):
    models = {
        "image-classifier": "2", "text-classifier": "1", "audio-classifier": "1",
        "object-detector": "1", "language-model": "1",
    }  # fmt: skip
    page.goto(re.sub(r"#/.*\?", "#/models?", address))
    for name, newest in models.items():
        expect(page.get_by_role("row", name=name)).to_contain_text(f"Version {newest}")
    expect(page.get_by_role("row")).to_have_count(1 + len(models))
    keep("models")
    for name, newest in models.items():
        page.get_by_role("link", name=name).click()
        champion = store.get_model_version_by_alias(name, "champion").version
        for alias, version in (("candidate", newest), ("champion", champion)):
            row = page.get_by_role("row", name=re.compile(f"Version {version}"))
            expect(row.get_by_text(f"@ {alias}")).to_be_visible()
            expect(page.get_by_text(f"@ {alias}")).to_have_count(1)
            expect(row).to_contain_text("decision: version")
        keep(f"model-{name}")
        page.get_by_role("link", name="Registered Models").click()


def test_the_ui_asks_no_other_machine(page):
    here = ("http://127.0.0.1:", "data:", "blob:", "about:")
    page.wait_for_timeout(500)
    assert [url for url in page.asked if not url.startswith(here)] == []


def test_nothing_that_a_stage_logged_was_refused(store):
    places = [found.experiment_id for found in store.search_experiments()]
    found = store.search_runs(places)
    kept = 2 + len(STAGES) + len(RAN_AGAIN)
    assert len([run for run in found if "beside" not in run.data.tags]) == kept
    assert [run.data.tags["refused"] for run in found if "refused" in run.data.tags] == []
