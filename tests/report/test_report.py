"""The report: complete, self-contained, deterministic, and right about what changed."""

import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from pipeline.checks import DIGEST
from pipeline.errors import PipelineError
from pipeline.files import refuse_foreign
from pipeline.report import build
from pipeline.report.numbers import (
    Change,
    Measure,
    changes,
    changes_table,
    committed,
    seed_noise,
    seeds,
)
from pipeline.settings import Report
from stages import report
from tests.report.conftest import MODELS, NUMBERS, SUMMARY

ACCURACY = Measure("accuracy", "accuracy", "share")


@pytest.fixture
def written(sources):
    return built(sources)


def built(sources) -> tuple[str, str]:
    """The two pages."""
    build(sources)
    return sources.html.read_text("utf-8"), sources.markdown.read_text("utf-8")


class Reader(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def write_repetition(sources, model: str, seed: int, accuracy: float) -> None:
    """What the stage `repeat` writes."""
    numbers = {
        "accuracy": accuracy, "difference": accuracy - 0.982, "p_value": 0.25, "agreement": 0.97,
        "examples": 1000, DIGEST: NUMBERS[DIGEST], "cka/early": 0.9, "cka/late": 0.75,
    }  # fmt: skip
    path = sources.metrics / "seeds" / f"{model}-{seed}.json"
    path.write_text(json.dumps(numbers))


def test_the_page_needs_nothing_from_outside(written):
    reader = parsed(written[0])
    for _, attributes in reader.tags:
        for name in ("src", "href"):
            link = attributes.get(name)
            assert link is None or re.match(r"data:image/png;base64,|#|/#/", link), link
    assert not re.search(r"https?://|@import|url\(", written[0])
    assert "default-src 'none'" in written[0]
    assert not any(tag == "script" for tag, _ in reader.tags)


def test_the_page_can_be_used_without_eyes(written):
    reader = parsed(written[0])
    tags = [tag for tag, _ in reader.tags]
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 6
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    assert next(a for tag, a in reader.tags if tag == "html")["lang"] == "en"
    assert tags.count("h1") == 1
    assert {"main", "nav", "header", "caption"} <= set(tags)
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(below - above <= 1 for above, below in pairwise(levels))
    names = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(names) == len(set(names))
    links = [a["href"] for tag, a in reader.tags if tag == "a"]
    assert all(link[1:] in names for link in links if link.startswith("#"))
    assert all("scope" in a for tag, a in reader.tags if tag == "th")


def test_the_headline_has_interval_baseline_gain_and_worst_slice(written):
    for text in written:
        assert "98.2%" in text
        assert "97.0 to 99.1%" in text
        assert "pixels: 90.7%" in text
        assert "+7.5" in text
        assert "class “b”: 70.0%" in text
        assert "4.1% → 1.0%" in text
        assert "3 pairs" in text


def test_models_of_all_tasks_stand_in_one_table_of_six_columns(written):
    html, markdown = written
    heads = re.findall(r'<th scope="col">(.*?)</th>', html.split("</thead>")[0])
    assert heads == ["Model", "Test", "95% interval", "Best simple rule", "Gain", "Besides"]
    assert "|---|---|---|---|---|---|" in markdown
    assert '<td class="big" data-label="Test">98.2% accuracy</td>' in html
    assert '<td data-label="Gain">+7.5 points</td>' in html
    assert "Worst slice class “b”: 70.0%; Calibration error 4.1% → 1.0%" in html
    assert '<td class="number">90.0%</td><td>c|d</td>' in html
    assert html.count("Calibration error: as trained → scaled.") == 1
    assert html.index("Macro F1") < html.index("<dt>Loss")
    assert ", macro F1 98.1%, loss 0.0612 nats. In MLflow" in markdown


def test_nothing_of_the_data_is_taken_for_markup(written):
    html, markdown = written
    assert "&lt;b&gt;&amp; more" in html
    assert "a&lt;b" in html
    assert "a <source>" not in html
    assert "\\<b\\>& more" in markdown
    head = next(line for line in markdown.splitlines() if line.startswith("| CNN"))
    assert head.count("|") - head.count("\\|") == 7


def test_markdown_links_its_images_relative_to_itself(written, tmp_path):
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", written[1])
    assert links == [f"../plots/{model}/confusion.png" for model in MODELS]
    assert all((tmp_path / "reports" / link).exists() for link in links)


def test_equal_files_give_equal_bytes(sources, written, tmp_path):
    again = {"html": tmp_path / "again.html", "markdown": tmp_path / "reports" / "again.md"}
    assert built(sources.model_copy(update=again)) == written


def test_the_run_is_found_by_the_content_of_the_weights(written):
    md5 = hashlib.md5(b"weights", usedforsecurity=False).hexdigest()
    assert f"tags.`weights.md5` = &#39;{md5}&#39;" in written[0]
    assert f"/#/experiments/1?searchFilter=tags.%60weights.md5%60%20%3D%20%27{md5}%27" in written[0]
    assert "/#/models/image-classifier" in written[0]


def test_seeds_are_summed_up_where_there_are_some(sources):
    (sources.metrics / "seeds").mkdir()
    for model in MODELS:
        for seed, accuracy in ((1, 0.992), (2, 0.972)):
            write_repetition(sources, model, seed, accuracy)
    assert seeds(sources.metrics, "cnn", "accuracy", NUMBERS, []) is None
    found = seeds(sources.metrics, "cnn", "accuracy", NUMBERS, [1, 2])
    assert found.values == [0.982, 0.992, 0.972]
    assert found.depths == ["early", "late"]
    assert ACCURACY.spread(found.values) == "98.20 ± 1.00%"
    html, markdown = built(sources.model_copy(update={"seeds": [1, 2]}))
    parsed(html)
    assert html.count("98.20 ± 1.00%") == 3
    assert "over 3 seeds: 98.20 ± 1.00%" in markdown
    # Student's t of two degrees of freedom, 4.303, times the root of 2, times 1.00 points.
    assert html.count('Noise of the seed">6.1 points</td>') == 3
    assert "+7.5: more than the seed explains" in html
    assert 'data-label="CKA late">0.75</td>' in html


def test_a_listed_seed_without_numbers_is_named_with_the_stage_that_makes_them(sources):
    with pytest.raises(PipelineError, match=r"cnn-5.json is missing; run `dvc repro repeat@cnn-5`"):
        build(sources.model_copy(update={"seeds": [5]}))


def test_numbers_of_a_seed_that_is_not_listed_any_more_are_not_shown(sources):
    (sources.metrics / "seeds").mkdir()
    write_repetition(sources, "cnn", 1, 0.5)
    assert "seeds:" not in built(sources)[0]


def test_the_noise_of_the_seed_is_that_of_simulated_pairs():
    generator = np.random.default_rng(0)
    runs = generator.normal(0.9, 0.01, size=(4000, 5))
    limits = np.array([seed_noise(row[:3]) for row in runs])
    assert np.mean(np.abs(runs[:, 3] - runs[:, 4]) <= limits) == pytest.approx(0.95, abs=0.012)


def test_parts_that_were_switched_off_leave_no_hole(sources):
    few = {name: value for name, value in NUMBERS.items() if "baseline" not in name}
    (sources.metrics / "cnn.json").write_text(json.dumps(few))
    summary = SUMMARY | {"columns": [["Calibration error", "4.1%"]]}
    (sources.plots / "cnn" / "summary.json").write_text(json.dumps(summary))
    html, markdown = built(sources)
    parsed(html)
    row = next(part for part in html.split("<tr>") if '<th scope="row"><a href="#cnn">' in part)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.split("</tr>")[0])
    assert cells == ["98.2% accuracy", "97.0 to 99.1%", "–", "–", "Calibration error 4.1%"]
    line = next(line for line in markdown.splitlines() if line.startswith("| CNN"))
    assert line.endswith("| **98.2% accuracy** | 97.0 to 99.1% | – | – | Calibration error 4.1% |")
    for text in (html, markdown):
        assert not re.search(r"\b(None|nan|Undefined)\b", text)
        assert text.count("pixels: 90.7%") == 2


def test_a_missing_file_is_named_with_the_stage_that_makes_it(sources):
    (sources.plots / "rnn" / "confusion.png").unlink()
    with pytest.raises(PipelineError, match=r"rnn/confusion.png .* evaluate@rnn"):
        build(sources)
    (sources.metrics / "cnn.json").unlink()
    with pytest.raises(PipelineError, match=r"cnn.json is missing; run `dvc repro evaluate@cnn`"):
        build(sources)
    assert not sources.html.exists()


def test_what_was_built_is_known_as_an_earlier_report(sources):
    build(sources)
    for key, path in (("html", sources.html), ("markdown", sources.markdown)):
        (mark,) = Report.model_fields[key].metadata
        refuse_foreign(path, mark.kind, mark.mark)
        path.write_text("somebody's own")
        with pytest.raises(PipelineError, match=f"{path.name} has other content"):
            refuse_foreign(path, mark.kind, mark.mark)


def test_metrics_without_an_interval_are_named(sources):
    broken = {name: value for name, value in NUMBERS.items() if name != "accuracy_low"}
    (sources.metrics / "cnn.json").write_text(json.dumps(broken))
    with pytest.raises(PipelineError, match=r"cnn lack 'accuracy_low'"):
        build(sources)


@pytest.mark.parametrize(
    "content", ["[]", '"x"', "3", "null", "{}", '{"accuracy": "high"}', '{"examples": 9}']
)
def test_malformed_metrics_are_named_with_the_stage_that_makes_them(
    content, sources, tmp_path, monkeypatch, capsys
):
    (sources.metrics / "cnn.json").write_text(content)
    outputs = [f"{name}={tmp_path / name}" for name in ("html", "markdown")]
    argv = ["report", "tracking=off", f"metrics={sources.metrics}", *outputs]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.chdir(tmp_path)  # main leaves for the root of the repository
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"error: {sources.metrics}/cnn.json does not map names of metrics to numbers and "
        "examples_sha256 to a digest; "
        "delete it and run `dvc repro evaluate@cnn`\n"
    )
    assert not (tmp_path / "html").exists()


def test_malformed_metrics_of_a_seed_are_named(sources):
    (sources.metrics / "seeds").mkdir()
    (sources.metrics / "seeds" / "cnn-5.json").write_text("[]")
    with pytest.raises(PipelineError, match=r"cnn-5.json does not map .* `dvc repro repeat@cnn-5`"):
        seeds(sources.metrics, "cnn", "accuracy", NUMBERS, [5])


def test_a_seed_measured_on_other_test_data_is_no_noise(sources):
    (sources.metrics / "seeds").mkdir()
    write_repetition(sources, "cnn", 1, 0.99)
    others = NUMBERS | {DIGEST: "ef" * 32}
    with pytest.raises(PipelineError, match=r"cnn-1.json was .* other test data than .*cnn.json; "):
        seeds(sources.metrics, "cnn", "accuracy", others, [1])


def test_changes_are_those_against_the_last_commit(sources):
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=sources.metrics, check=True, capture_output=True)

    assert committed(sources.metrics, ["cnn"]) == {}
    git("init", "-q")
    (sources.metrics / "list.json").write_text("[]")
    (sources.metrics / "torn.json").write_text('{"accuracy"')
    git("add", "cnn.json", "list.json", "torn.json")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    assert committed(sources.metrics, ["cnn", "rnn", "list", "torn"]) == {"cnn": NUMBERS}
    assert changes({"cnn": NUMBERS}, {"cnn": NUMBERS}, {}) == []
    better = NUMBERS | {
        "accuracy": 0.99,
        "accuracy_low": 0.98,
        "accuracy_high": 0.995,
        "loss": 0.05,
    }
    assert changes({"cnn": NUMBERS}, {"cnn": better, "rnn": better}, {}) == [
        Change("cnn", "accuracy", 0.982, 0.99, "within noise"),
        Change("cnn", "loss", 0.0612, 0.05, ""),
    ]
    table = changes_table({"cnn": NUMBERS}, {"cnn": better}, {})
    assert "| cnn | accuracy | 0.9820 | 0.9900 | +0.0080 (within noise) |" in table
    far = {"cnn": NUMBERS | {"accuracy": 0.95, "accuracy_low": 0.94, "accuracy_high": 0.96}}
    assert [one.note for one in changes({"cnn": NUMBERS}, far, {})] == [""]
    assert [one.note for one in changes({"cnn": NUMBERS}, far, {"cnn": 0.04})] == ["within noise"]
    other = {"cnn": better | {DIGEST: "ef" * 32}}
    said = "other test data, no comparison"
    assert {one.note for one in changes({"cnn": NUMBERS}, other, {})} == {said}
    table = changes_table({"cnn": NUMBERS}, other, {})
    assert f"| cnn | accuracy | 0.9820 | 0.9900 | {said} |" in table
    same = changes_table({"cnn": NUMBERS}, {"cnn": NUMBERS}, {})
    assert same == "No metric changed against the last commit.\n"
    assert "no metrics to compare" in changes_table({}, {"cnn": NUMBERS}, {})
