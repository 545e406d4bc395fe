"""The interactive page holds what the model answered, and stays small and harmless."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.classification.evaluation.depth import Depths
from pipeline.classification.evaluation.exploration import (
    FILE,
    MOST_CLASSES,
    MOST_POINTS,
    exploration,
    plane,
)
from pipeline.classification.evaluation.predictions import Predictions, probabilities
from pipeline.classification.evaluation.study import study
from pipeline.classification.examples import Examples, sample_rows
from pipeline.evaluation import metrics
from pipeline.evaluation.page import Page
from tests.evaluation.explored import Elements, charts, hostile, write

TASKS = ("image", "text", "audio")


@pytest.fixture(scope="module")
def drawn(subjects, tmp_path_factory):
    """The charts of each task's page."""
    return {
        task: charts(write(*subjects[task], tmp_path_factory.mktemp(task)).read_text())
        for task in TASKS
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_squares_hold_the_confusion_counts(drawn, subjects, task):
    subject, data = subjects[task]
    (squares,), _ = drawn[task]["confusion"]
    guesses = data.on_test.logits.argmax(axis=1)
    matrix = metrics.confusion(guesses, data.test.labels, len(subject.classes))
    assert [[int(text or 0) for text in row] for row in squares["text"]] == matrix.tolist()
    for row, actual in enumerate(subject.classes):
        for column, guess in enumerate(subject.classes):
            assert squares["hovertext"][row][column] == (
                f"true class: <b>{actual}</b><br>predicted: <b>{guess}</b><br>"
                f"{matrix[row, column]} examples, "
                f"{matrix[row, column] / matrix[row].sum():.1%} of the true class"
            )


@pytest.mark.parametrize("task", TASKS)
def test_each_point_is_a_test_example_and_each_wrong_answer_a_cross(drawn, subjects, task):
    subject, data = subjects[task]
    traces, _ = drawn[task]["map"]
    chances = probabilities(data.on_test.logits)
    assert [trace["name"] for trace in traces] == subject.classes
    seen, crosses = [], 0
    for label, trace in enumerate(traces):
        assert len(trace["x"]) == len(trace["y"]) == len(trace["hovertext"])
        for hover, symbol in zip(trace["hovertext"], trace["marker"]["symbol"], strict=True):
            first, second, third, *rest = hover.split("<br>")
            row = int(re.fullmatch(r"row <b>(\d+)</b> of the test split", first)[1])
            guess = int(chances[row].argmax())
            assert label == data.test.labels[row]
            assert second == f"true class: <b>{subject.classes[label]}</b>"
            assert third == (
                f"predicted: <b>{subject.classes[guess]}</b>, {chances[row, guess]:.1%}"
            )
            assert (symbol == "x") == (guess != label)
            if task == "text":
                assert data.test.raw[row].startswith(" ".join(rest).removesuffix(" …"))
                assert len(rest) in (1, 2, 3)
            else:
                columns = data.test.columns.items()
                assert rest == [f"{name}: {values[row]}" for name, values in columns]
            seen.append(row)
            crosses += symbol == "x"
    assert sorted(seen) == sample_rows(len(data.test), 80, 0).tolist()
    assert crosses > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_marks_of_calibration_are_the_bins(drawn, subjects, task):
    _, data = subjects[task]
    (_, marks), _ = drawn[task]["calibration"]
    table = metrics.reliability(probabilities(data.on_test.logits), data.test.labels)
    assert marks["x"] == pytest.approx(table.confidence.tolist(), abs=1e-4)
    assert marks["y"] == pytest.approx(table.accuracy.tolist(), abs=1e-4)
    for hover, examples, accuracy in zip(
        marks["hovertext"], table.examples, table.accuracy, strict=True
    ):
        assert f"<b>{examples}</b> examples" in hover
        assert f"accuracy {accuracy:.1%}" in hover


def test_the_map_shows_what_the_probes_have_computed_as_it_would_by_itself(
    subjects, parts, tmp_path
):
    subject, data = subjects["image"]
    off = {name: False for name, on in parts if on is True} | {"exploration": True}
    written = []
    for folder, also in (("alone", {}), ("with probes", {"probes": True})):
        (tmp_path / folder).mkdir()
        chosen = parts.model_copy(update=off | also)
        study(subject, data, chosen, tmp_path / folder, name="cnn", seed=0, mistakes=6)
        written.append((tmp_path / folder / FILE).read_bytes())
    assert written[0] == written[1]


class TestPlane:
    def test_it_is_the_plane_of_the_largest_variance(self):
        random = np.random.default_rng(0)
        features = random.normal(size=(300, 12)) @ random.normal(size=(12, 12)) + 5
        places, shares = plane(features.astype(np.float32), 0)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        left, values, _ = np.linalg.svd(scaled, full_matrices=False)
        assert shares == pytest.approx((values**2 / (values**2).sum())[:2].tolist(), rel=1e-4)
        assert np.allclose(np.abs(places), np.abs(left[:, :2] * values[:2]), atol=1e-3)

    @pytest.mark.parametrize("width", [1, 5])
    def test_features_that_do_not_vary_are_one_point(self, width):
        places, shares = plane(np.ones((20, width), np.float32), 0)
        assert not places.any()
        assert shares == [0, 0]

    def test_one_feature_is_a_line(self):
        places, shares = plane(np.arange(9, dtype=np.float32)[:, None], 0)
        assert shares == pytest.approx([1, 0])
        assert len(np.unique(places[:, 0])) == 9
        assert not places[:, 1].any()


def test_names_and_sentences_are_no_markup(subjects, tmp_path):
    subject, data = subjects["text"]
    pages = []
    for name, content in (("plain", (subject, data)), ("hostile", hostile(subject, data))):
        (tmp_path / name).mkdir()
        pages.append(write(*content, tmp_path / name).read_text())
    assert Elements(pages[0]).found == Elements(pages[1]).found
    assert [tag for tag, _ in Elements(pages[1]).found].count("script") == 5
    traces, _ = charts(pages[1])["map"]
    shown = [text for trace in traces for text in (trace["name"], *trace["hovertext"])]
    tags = {tag for text in shown for tag in re.findall(r"<[^>]*>", text)}
    assert tags == {"<b>", "</b>", "<br>"}
    assert "R&amp;D &lt;b&gt;bold&lt;/b&gt;" in shown


def test_of_many_examples_and_classes_some_are_drawn(subjects, tmp_path):
    random = np.random.default_rng(0)
    count, classes = 3000, [f"class {number}" for number in range(100)]
    test = Examples(np.zeros((count, 1, 2, 2), np.uint8), random.integers(100, size=count), {})
    logits = random.normal(size=(count, 100)).astype(np.float32)
    logits[np.arange(count), test.labels] += 9 * (test.labels >= 50)
    features = {"last": random.normal(size=(count, 8)).astype(np.float32)}
    subject = replace(subjects["image"][0], classes=classes)
    found = Depths(test, test, (features, features), (features, features))
    exploration(
        Page(tmp_path), subject, test, Predictions(logits, test.labels), np.arange(count), found,
        0, "many",
    )  # fmt: skip
    html = (tmp_path / FILE).read_text()
    assert len(html) < 6_000_000
    (squares,), _ = charts(html)["confusion"]
    assert len(squares["z"]) == MOST_CLASSES
    assert set(classes[:50]) <= {row[0].split("</b>")[0][15:] for row in squares["hovertext"]}
    assert f"Of 100 classes the {MOST_CLASSES} with the most mistakes are shown." in html
    assert sum(len(trace["x"]) for trace in charts(html)["map"][0]) == MOST_POINTS
