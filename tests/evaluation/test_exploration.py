"""The interactive page holds what the model answered, and stays small and harmless."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.classification.data.examples import Examples, sample_rows
from pipeline.classification.evaluation import metrics
from pipeline.classification.evaluation.exploration import (
    FILE,
    MOST_CLASSES,
    MOST_POINTS,
    exploration,
    plane,
)
from pipeline.classification.evaluation.metrics import probabilities
from pipeline.classification.evaluation.study import NetworkFeatures
from pipeline.figures.page import Page
from tests.evaluation.conftest import DATA, drawn
from tests.evaluation.explored import Elements, charts, hostile, renamed, write


@pytest.fixture(scope="module")
def shown(studies, tmp_path_factory):
    """The charts of each task's page."""
    return {
        task: charts(write(study, tmp_path_factory.mktemp(task)).read_text())
        for task, study in studies.items()
    }


@pytest.mark.parametrize("task", DATA)
def test_the_squares_hold_the_confusion_counts(shown, studies, task):
    study = studies[task]
    classes = study.subject.classes
    (squares,), _ = shown[task]["confusion"]
    guesses = study.on_test.argmax(axis=1)
    matrix = metrics.confusion(guesses, study.test.labels, len(classes))
    assert [[int(text or 0) for text in row] for row in squares["text"]] == matrix.tolist()
    for row, actual in enumerate(classes):
        for column, guess in enumerate(classes):
            assert squares["hovertext"][row][column] == (
                f"true class: <b>{actual}</b><br>predicted: <b>{guess}</b><br>"
                f"{matrix[row, column]} examples, "
                f"{matrix[row, column] / matrix[row].sum():.1%} of the true class"
            )


@pytest.mark.parametrize("task", DATA)
def test_each_point_is_a_test_example_and_each_wrong_answer_a_cross(shown, studies, task):
    study = studies[task]
    classes = study.subject.classes
    traces, _ = shown[task]["map"]
    chances = probabilities(study.on_test)
    assert [trace["name"] for trace in traces] == classes
    seen, crosses = [], 0
    for label, trace in enumerate(traces):
        assert len(trace["x"]) == len(trace["y"]) == len(trace["hovertext"])
        for hover, symbol in zip(trace["hovertext"], trace["marker"]["symbol"], strict=True):
            first, second, third, *rest = hover.split("<br>")
            row = int(re.fullmatch(r"row <b>(\d+)</b> of the test split", first)[1])
            guess = int(chances[row].argmax())
            assert label == study.test.labels[row]
            assert second == f"true class: <b>{classes[label]}</b>"
            assert third == f"predicted: <b>{classes[guess]}</b>, {chances[row, guess]:.1%}"
            assert (symbol == "x") == (guess != label)
            if task == "text":
                assert study.test.raw[row].startswith(" ".join(rest).removesuffix(" …"))
                assert len(rest) in (1, 2, 3)
            else:
                columns = study.test.columns.items()
                assert rest == [f"{name}: {values[row]}" for name, values in columns]
            seen.append(row)
            crosses += symbol == "x"
    assert sorted(seen) == sample_rows(len(study.test), 80, 0).tolist()
    assert crosses > 0


@pytest.mark.parametrize("task", DATA)
def test_the_marks_of_calibration_are_the_bins(shown, studies, task):
    study = studies[task]
    (_, marks), _ = shown[task]["calibration"]
    table = metrics.reliability(probabilities(study.on_test), study.test.labels)
    assert marks["x"] == pytest.approx(table.confidence.tolist(), abs=1e-4)
    assert marks["y"] == pytest.approx(table.accuracy.tolist(), abs=1e-4)
    for hover, examples, accuracy in zip(
        marks["hovertext"], table.examples, table.accuracy, strict=True
    ):
        assert f"<b>{examples}</b> examples" in hover
        assert f"accuracy {accuracy:.1%}" in hover


def test_the_map_shows_what_the_probes_have_computed_as_it_would_by_itself(studies, tmp_path):
    parts = studies["image"].parts
    off = {name: False for name, on in parts if on is True} | {"exploration": True}
    written = []
    for folder, also in (("alone", {}), ("with probes", {"probes": True})):
        (tmp_path / folder).mkdir()
        chosen = parts.model_copy(update=off | also)
        drawn(studies["image"], tmp_path / folder, parts=chosen)
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


def test_names_and_sentences_are_no_markup(studies, tmp_path):
    study = studies["text"]
    pages = []
    for name, changes in (("plain", {}), ("hostile", hostile(study))):
        (tmp_path / name).mkdir()
        pages.append(write(study, tmp_path / name, **changes).read_text())
    assert Elements(pages[0]).found == Elements(pages[1]).found
    assert [tag for tag, _ in Elements(pages[1]).found].count("script") == 5
    traces, _ = charts(pages[1])["map"]
    shown = [text for trace in traces for text in (trace["name"], *trace["hovertext"])]
    tags = {tag for text in shown for tag in re.findall(r"<[^>]*>", text)}
    assert tags == {"<b>", "</b>", "<br>"}
    assert "R&amp;D &lt;b&gt;bold&lt;/b&gt;" in shown


def test_of_many_examples_and_classes_some_are_drawn(studies, tmp_path):
    random = np.random.default_rng(0)
    count, classes = 3000, [f"class {number}" for number in range(100)]
    test = Examples(np.zeros((count, 1, 2, 2), np.uint8), random.integers(100, size=count), {})
    logits = random.normal(size=(count, 100)).astype(np.float32)
    logits[np.arange(count), test.labels] += 9 * (test.labels >= 50)
    features = {"last": random.normal(size=(count, 8)).astype(np.float32)}
    subject = renamed(studies["image"].subject, classes)
    study = replace(studies["image"], subject=subject, test=test, name="many")
    study.on_test, study.rows = logits, np.arange(count)
    study.features = NetworkFeatures(test, test, [features, features], [features, features])
    exploration(Page(tmp_path), study)
    html = (tmp_path / FILE).read_text()
    assert len(html) < 6_000_000
    (squares,), _ = charts(html)["confusion"]
    assert len(squares["z"]) == MOST_CLASSES
    assert set(classes[:50]) <= {row[0].split("</b>")[0][15:] for row in squares["hovertext"]}
    assert f"Of 100 classes the {MOST_CLASSES} with the most mistakes are shown." in html
    assert sum(len(trace["x"]) for trace in charts(html)["map"][0]) == MOST_POINTS
