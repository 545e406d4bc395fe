"""What is measured of boxes, against counts by hand and against COCO's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.tasks.object_detection.evaluation import matches
from pipeline.tasks.object_detection.evaluation.metrics import average_precision
from pipeline.tasks.object_detection.evaluation.study import numbers_of
from tests.tasks.object_detection.drawn import boxes


def crowd(images: int, seed: int = 0, quality: float = 0.9):
    """True boxes, and found ones that are mostly near them."""
    random, truth, found = np.random.default_rng(seed), [], []
    noise = np.random.default_rng([seed, int(100 * quality)])
    for _ in range(images):
        count = random.integers(0, 7)
        corner, side = random.uniform(0, 70, (count, 2)), random.uniform(14, 58, (count, 2))
        true = np.column_stack([corner, corner + side, random.integers(0, 10, count)])
        truth.append(boxes(*true))
        near = true[noise.random(count) < quality].copy()
        near[:, :4] += noise.normal(0, 2, (len(near), 4))
        wrong = noise.integers(0, 4)
        place = noise.uniform(0, 70, (wrong, 2))
        extra = np.column_stack([place, place + 20, noise.integers(0, 10, wrong)])
        rows = np.concatenate([near, extra])
        scores = np.concatenate([noise.uniform(0.3, 1, len(near)), noise.uniform(0, 0.6, wrong)])
        table = np.column_stack([rows, scores])
        found.append(boxes(*table[np.argsort(-scores)]))
    return found, truth


A, B = (10, 10, 30, 30), (60, 60, 90, 90)


def test_all_right_is_one_and_nothing_is_zero():
    truth = [boxes((*A, 0), (*B, 1))]
    assert average_precision(truth, truth, 2).map == pytest.approx(1)
    assert average_precision([boxes()], truth, 2).map == 0


def test_the_map_of_draws_is_cocos_map_of_the_images_drawn():
    found, truth = crowd(60)
    made = matches.match(found, truth)
    once = matches.resampled(made, np.ones((1, 60)))[0]
    assert once == pytest.approx(average_precision(found, truth, 10).map, abs=1e-4)
    weights = matches.draws(60, 0, 3)
    for value, row in zip(matches.resampled(made, weights), weights.astype(int), strict=True):
        rows = np.repeat(np.arange(60), row)
        drawn = [found[i] for i in rows], [truth[i] for i in rows]
        assert value == pytest.approx(average_precision(*drawn, 10).map, abs=1e-3)


def test_the_map_of_a_draw_is_that_of_its_boxes_one_after_the_other():
    made = matches.match(*crowd(40, quality=0.7))
    weights = matches.draws(40, 1, 20)
    for value, weight in zip(matches.resampled(made, weights), weights.astype(int), strict=True):
        areas = []
        for label in np.unique(made.true_label[weight[made.true_image] > 0]):
            there = weight[made.true_image[made.true_label == label]].sum()
            mine = made.label == label
            times = weight[made.image[mine]]
            for right in made.right[:, mine]:
                hits, answered = (right * times).cumsum(), np.maximum(times.cumsum(), 1)
                reached = [100 * hits >= recall * there for recall in range(101)]
                areas += [np.mean([(hits / answered)[one].max(initial=0) for one in reached])]
        assert value == pytest.approx(np.mean(areas), abs=1e-7)


def taken(covers: np.ndarray, least: float) -> list[int]:
    """Of each box the true one that it takes, or -1."""
    free, places = np.ones(covers.shape[1], np.bool_), []
    for cover in covers:
        best = max(np.flatnonzero(free & (cover >= least)), key=cover.__getitem__, default=-1)
        if best >= 0:
            free[best] = False
        places.append(best)
    return places


@pytest.mark.parametrize("seed", range(10))
def test_each_box_takes_the_free_true_one_that_it_covers_best(seed):
    random = np.random.default_rng(seed)

    def some():  # on a coarse grid, so that many are covered equally well
        corner = random.integers(0, 3, (random.integers(0, 9), 2))
        side, labels = random.integers(4, 7, corner.shape), random.integers(0, 2, len(corner))
        return boxes(*np.column_stack([corner, corner + side, labels]))

    found, truth = ([some() for _ in range(8)] for _ in range(2))
    right, actual = [], []
    for one, true in zip(found, truth, strict=True):
        covers = matches.overlaps(one.corners, true.corners)
        alike = np.where(one.labels[:, None] == true.labels, covers, 0)
        right.append([[place >= 0 for place in taken(alike, iou)] for iou in matches.IOUS])
        actual += [true.labels[place] if place >= 0 else -1 for place in taken(covers, 0.5)]
    made = matches.match(found, truth)  # all score 1, so they stay in their order
    assert np.array_equal(made.right, np.concatenate(right, axis=1))
    assert made.actual.tolist() == actual


def test_sizes_are_those_of_the_data():
    truth = [boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 0), (50, 50, 100, 100, 0))]
    found = [boxes((0, 0, 10, 10, 0, 0.9), (50, 50, 100, 100, 0, 0.8))]
    assert average_precision(found, truth, 1, [15.0, 30.0]).by_size == pytest.approx([1, 0, 1])


def test_a_class_may_be_called_like_a_size():
    found, truth = crowd(20)
    judged = average_precision(found, truth, 10)
    study: Any = SimpleNamespace(
        precision=judged,
        matches=matches.match(found, truth),
        settings=SimpleNamespace(seed=0),
        classes=["small", *"123456789"],
        test=SimpleNamespace(images=truth),
    )
    numbers = numbers_of(study)
    assert numbers["map/small"] == judged.by_class[0]
    assert numbers["map_small"] == judged.by_size[0] != judged.by_class[0]


def test_each_kind_of_error():
    truth = [boxes((*A, 0), (*B, 1))]
    found = [
        boxes(
            (*A, 0, 0.9),  # right
            (11, 10, 30, 30, 0, 0.8),  # duplicate
            (*B, 2, 0.7),  # class
            (75, 60, 105, 90, 1, 0.6),  # place
            (75, 60, 105, 90, 2, 0.5),  # class and place
            (0, 100, 20, 120, 1, 0.4),  # background
        )
    ]
    made = matches.match(found, truth)
    kinds = [matches.KINDS[kind] if kind >= 0 else "right" for kind in made.kind]
    assert kinds == ["right", "duplicate", "class", "place", "class and place", "background"]
    table = matches.confusion(made, 0.0, 3)
    assert table[0].tolist() == [1, 0, 0, 0]
    assert table[1].tolist() == [0, 0, 1, 0]
    assert table[3].tolist() == [1, 2, 1, 0]


def test_the_threshold_is_the_one_with_the_best_f1():
    truth = [boxes((*A, 0)), boxes((*B, 0))]
    found = [boxes((*A, 0, 0.9), (*B, 0, 0.3)), boxes((*B, 0, 0.8), (*A, 0, 0.2))]
    assert matches.best_threshold(matches.match(found, truth)) == pytest.approx(0.8)


def test_the_score_of_an_image_is_its_f1_over_the_ious():
    truth = [boxes((*A, 0)), boxes(), boxes()]
    found = [boxes((*A, 0, 0.9), (*B, 0, 0.8)), boxes(), boxes((*B, 0, 0.8))]
    made = matches.match(found, truth)
    assert matches.image_scores(made, 0.5) == pytest.approx([2 / 3, 1, 0])
    assert matches.image_scores(made, 0.85) == pytest.approx([1, 1, 1])


def test_a_better_detector_is_told_from_a_worse_and_from_itself():
    good, truth = crowd(200)
    bad, _ = crowd(200, quality=0.5)
    first, second = matches.match(bad, truth), matches.match(good, truth)
    found = matches.difference(first, second, 0)
    assert 0 < found.low < found.high
    assert found.p_value < 0.01
    assert matches.difference(first, first, 0).p_value == 1


def test_the_interval_of_a_thousand_images_is_around_the_value_and_narrow():
    found, truth = crowd(1000)
    value = average_precision(found, truth, 10).map
    low, high = matches.interval(matches.match(found, truth), value, 0)
    assert low < value < high < low + 0.1
