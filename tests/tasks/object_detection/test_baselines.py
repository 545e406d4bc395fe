"""The sliding window learns from what it took for something."""

import numpy as np
import pytest

from pipeline.prepared import write
from pipeline.tasks.object_detection.boxes.read import TASK, Boxes, Split, read
from pipeline.tasks.object_detection.evaluation import baselines
from pipeline.tasks.object_detection.evaluation.matches import overlaps
from pipeline.tasks.object_detection.evaluation.metrics import average_precision
from pipeline.tasks.object_detection.prepare import prepare
from tests.data.sources import boxes_source

CLASSES = 10


@pytest.mark.slow
def test_hard_negatives_on_no_thing_make_the_sliding_window_better(tmp_path, monkeypatch):
    write(tmp_path / "boxes", TASK, prepare(boxes_source(), 0, 200), 0)
    (_, train), (_, test) = (read(tmp_path / "boxes", split) for split in ("train", "test"))
    test = test.first(24)
    every = [np.arange(len(boxes.labels)) % 4 for boxes in train.boxes]
    shown = [boxes.where(four < 3) for boxes, four in zip(train.boxes, every, strict=True)]
    ignored = [boxes.where(four == 3) for boxes, four in zip(train.boxes, every, strict=True)]
    fits, searches = [], []
    fit, search = baselines._fit, baselines._search
    monkeypatch.setattr(baselines, "MINED", 160)
    monkeypatch.setattr(
        baselines, "_fit", lambda *how: fits.append((how[1], fit(*how))) or fits[-1][1]
    )
    monkeypatch.setattr(baselines, "_search", lambda *how: searches.append(how[3:]) or search(*how))
    found = baselines.sliding(Split(train.images, shown, ignored), test.images, CLASSES, 0)

    (few, first), (more, _) = fits
    assert len(searches) == 160 + 24
    assert len(few) + 50 < len(more)
    for number, box, label in more:
        if label == CLASSES:
            things = train.boxes[number].corners
            assert overlaps(box[None], things).max(initial=0) < baselines.FREE
    before = [search(image, *first, *searches[0]) for image in test.images]
    once, twice = (average_precision(one, test.boxes, CLASSES).map_50 for one in (before, found))
    assert once + 0.02 < twice
    assert twice > 0.3


def test_a_thing_that_fills_every_image_leaves_the_sliding_window_nothing_to_learn():
    images = [np.full((1, 48, 48), 40 * number, np.uint8) for number in range(4)]
    whole = np.array([[0, 0, 48, 48]], np.float32)
    boxes = [Boxes(whole, np.array([label]), np.ones(1, np.float32)) for label in (0, 1, 0, 1)]
    found = baselines.sliding(Split(images, boxes, []), images[:3], 2, 0)
    assert [len(one.scores) for one in found] == [0, 0, 0]
