"""The score from which on a box is an answer: chosen on validation, kept in the model, kept to."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.figures.page import Page
from pipeline.figures.style import look
from pipeline.task import find
from pipeline.tasks.object_detection import model as detector
from pipeline.tasks.object_detection.boxes.read import read
from pipeline.tasks.object_detection.evaluation import matches
from pipeline.training import net as nets
from tests.tasks.test_contract import House, settings


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    threads = torch.get_num_threads()
    yield House(find(name="object_detection"), tmp_path_factory.mktemp("house"))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained(house, tmp_path_factory):
    """A network after a few steps whose heat is spread, so that it finds boxes of many scores."""
    one = house.build()
    assert one.module.threshold.item() == 0
    house.fit(one, tmp_path_factory.mktemp("states"))
    with torch.no_grad():
        one.module.head.weight[4:] *= 20
        one.module.head.bias[4:] += 3
    validation = house.load("validation", one)
    with torch.inference_mode():
        detector.settle(one.module, one.module, validation)
    return one


def found(one: nets.Net, images) -> list:
    """All boxes, in batches as large as validation's."""
    with torch.inference_mode():
        inputs = one.task.data.inputs(list(images), one)
        return detector.decode(one.module(**inputs))


def test_a_training_ends_with_the_threshold_of_the_best_f1_on_validation(house, tmp_path):
    one = house.build()
    house.fit(one, tmp_path)
    threshold = one.module.threshold.item()
    _, split = read(house.data, "validation")
    made = matches.match(found(one, split.images), split.boxes, split.ignored)
    assert threshold == pytest.approx(matches.best_threshold(made), rel=1e-4)


def test_no_threshold_has_a_better_f1_on_validation(house, trained):
    _, split = read(house.data, "validation")
    made = matches.match(found(trained, split.images), split.boxes, split.ignored)
    sweep, threshold = matches.sweep(made), trained.module.threshold.item()
    assert len(sweep.score) > 20
    assert detector.LOWEST < threshold < sweep.score.max() + 1e-6
    here = np.flatnonzero(sweep.score >= threshold - 1e-6)[-1]
    assert sweep.f1[here] == sweep.f1.max()


def test_a_saved_model_answers_with_the_boxes_from_its_threshold_on(house, trained, tmp_path):
    nets.save(tmp_path, trained)
    again, raw = nets.load(tmp_path), house.task.data.example(house.data)
    threshold = trained.module.threshold.item()
    assert again.module.threshold.item() == threshold > 0
    with torch.inference_mode():
        output = again.module(**house.task.data.encode([raw], again))
    (every,), (answer,) = detector.decode(output), detector.answer(output, again)
    assert [one["score"] for one in answer] == every.scores[every.scores >= threshold].tolist()
    again.module.threshold.fill_(1.1)
    assert detector.answer(output, again) == [[]]
    assert len(detector.decode(output)[0].scores) == len(every.scores)


def test_evaluation_measures_the_test_split_at_the_models_threshold(house, trained, tmp_path):
    asked = settings(
        "evaluate", "model=detector", f"data={house.data}", f"plots={tmp_path}/plots",
        f"metrics={tmp_path}/m.json",
    )  # fmt: skip
    show = house.task.show
    study = show.study(trained, asked, house.hardware, [])
    page = Page(tmp_path)
    with look():
        show.PARTS["scores"](page, study)
    threshold = trained.module.threshold.item()
    _, split = read(house.data, "test")
    made = matches.match(found(trained, split.images), split.boxes, split.ignored)
    kept = made.score >= threshold
    right, boxes, true = made.right[0, kept].sum(), kept.sum(), len(made.true_label)
    assert page.numbers["threshold"] == threshold
    assert page.numbers["precision"] == pytest.approx(right / boxes)
    assert page.numbers["recall"] == pytest.approx(right / true)
    assert page.numbers["f1"] == pytest.approx(2 * right / (boxes + true))
    table = pq.read_table(Path(tmp_path) / "predictions.parquet")
    assert sum(table["found"].to_pylist()) == boxes < len(made.score)
    assert json.dumps(page.numbers)
