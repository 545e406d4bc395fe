"""How good boxes are: average precision, and what can be resampled over images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.intervals import Floats
from pipeline.tasks.object_detection.boxes.read import Boxes

IOUS = np.linspace(0.5, 0.95, 10)
MOST = 100
"""Boxes of an image that count, at most, the surest first."""


class Precision(NamedTuple):
    """Average precisions as COCO counts them; NaN where there is no such box.

    Attributes:
        map, map_50, map_75: mean over the classes; over IoUs of 0.5 to 0.95, at 0.5, at 0.75.
        by_class: over the IoUs, [classes].
        by_size: mean over classes and IoUs, of small, medium and large boxes, [3].
        recall: mean recall over classes and IoUs.
        curves: precision [classes, 101] at recalls of 0 to 1, at an IoU of 0.5.
    """

    map: float
    map_50: float
    map_75: float
    by_class: Floats
    by_size: Floats
    recall: float
    curves: Floats


def average_precision(
    found: Sequence[Boxes],
    truth: Sequence[Boxes],
    classes: int,
    sizes: Sequence[float] = (32.0, 96.0),
    ignored: Sequence[Boxes] = (),
) -> Precision:
    """Compare what was found in each image with what is there.

    Args:
        found: boxes of each image.
        truth: the true ones.
        classes: how many.
        sizes: roots of areas that part small, medium and large boxes.
        ignored: boxes that to find is neither right nor wrong, as COCO takes its crowds.
    """
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    quiet = {"print_function": lambda *_: None}
    images = [{"id": number} for number in range(1, len(truth) + 1)]
    names = [{"id": number, "name": str(number)} for number in range(classes)]
    rows = [(row, crowd) for crowd, part in enumerate((truth, ignored)) for row in _rows(part)]
    annotations = [
        {"id": number, "image_id": int(row[0]), "category_id": int(row[6]), "iscrowd": crowd,
         "bbox": row[1:5].tolist(), "area": row[3] * row[4]}
        for number, (row, crowd) in enumerate(rows, 1)
    ]  # fmt: skip
    whole = COCO({"images": images, "annotations": annotations, "categories": names}, **quiet)
    answers = _rows(found)
    if not len(answers):  # it takes no empty table; this one answers nothing right
        answers = np.array([[1, -2, -2, 1, 1, 0, 0]], np.float64)
    judge = COCOeval_faster(whole, whole.loadRes(answers), "bbox", **quiet)
    edges = [0.0, *(side**2 for side in sizes), 1e10]
    judge.params.areaRng = [[0.0, 1e10], *map(list, pairwise(edges))]
    judge.params.areaRngLbl = ["all", "small", "medium", "large"]
    judge.params.maxDets = [MOST]
    judge.evaluate()
    judge.accumulate()
    precision = np.asarray(judge.eval["precision"], np.float64).reshape(10, 101, classes, 4)
    recall = np.asarray(judge.eval["recall"], np.float64).reshape(10, classes, 4)
    precision[precision < 0], recall[recall < 0] = np.nan, np.nan
    every = precision[..., 0].mean(axis=1)
    return Precision(
        map=_mean(every),
        map_50=_mean(every[0]),
        map_75=_mean(every[5]),
        by_class=every.mean(axis=0),
        by_size=np.array([_mean(precision[..., size]) for size in (1, 2, 3)]),
        recall=_mean(recall[..., 0]),
        curves=precision[0, :, :, 0].T,
    )


def coco_results(found: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Boxes in COCO's results format; images and classes are counted from 0."""
    return [
        {"image_id": int(image) - 1, "category_id": int(label), "score": round(score, 5),
         "bbox": [round(side, 2) for side in box]}
        for image, *box, score, label in _rows(found).tolist()
    ]  # fmt: skip


def _rows(boxes: Sequence[Boxes]) -> Floats:
    """Image (from 1), x, y, width, height, score and label of each box, [n, 7]."""
    rows = [np.zeros((0, 7))]
    for number, (corners, labels, scores) in enumerate(boxes, 1):
        image = np.full((len(labels), 1), number)
        sides = corners[:, 2:] - corners[:, :2]
        rows.append(np.column_stack([image, corners[:, :2], sides, scores, labels]))
    return np.concatenate(rows)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
