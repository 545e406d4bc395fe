"""Simpler rules than a network: the most frequent box, and a window slid over the image.

Each learns from a split and says which boxes are in other images.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation.intervals import Floats
from pipeline.evaluation.probes import one_thread
from pipeline.figures.page import Page
from pipeline.tasks.object_detection.boxes.read import Boxes, Image, Split
from pipeline.tasks.object_detection.evaluation.matches import overlaps
from pipeline.tasks.object_detection.evaluation.study import Study

CELL, WINDOW, TALL = 4, 32, 22
"""Pixels of a HOG cell, of a window, and of a thing inside it."""
ANGLES = 9
SCALES = 10
NEGATIVES = 2
"""Windows on nothing for each window on a thing."""
TRIES = 100
"""Draws for each of these, at most: things may leave no place."""
FREE = 0.3
"""IoU with a thing up to which a window is on nothing."""
MINED = 300
"""Images that are searched for windows that are wrongly taken for something, at most."""
SURE = 0.3
"""Score from which on such a window is learnt from."""
APART = 0.35
"""IoU from which on the less sure of two boxes is left out."""
KEPT = 50
Window = tuple[int, NDArray[np.float64], int]
"""Number of the image, box, class."""


def against_rules(page: Page, study: Study) -> None:
    """What simpler rules find, on the images that they were measured on."""
    parts, test = study.parts, study.test
    train = study.train.first(parts.hog_train)
    rules = {
        "most frequent box": (len(test.images), frequent),
        "HOG + linear": (parts.hog_test, sliding),
    }
    rows = []
    for rule, (most, find) in rules.items():
        part = test.first(most)
        found = find(train, part.images, len(study.classes), study.settings.seed)
        there, ours = study.judge(found, part), study.judge(study.found[:most], part)
        page.numbers |= {
            f"baseline/{rule}/map": there.map,
            f"baseline/{rule}/map_50": there.map_50,
            f"baseline/{rule}/gain": ours.map - there.map,
        }
        rows.append(
            [rule, str(len(part.images)), f"{there.map:.1%}", f"{there.map_50:.1%}",
             f"{ours.map:.1%}", f"{ours.map_50:.1%}"]
        )  # fmt: skip
    page.show(
        f"Against simple rules, which learn from {len(train.images):,} images",
        ["Rule", "Test images", "mAP", "mAP at 0.5", "The detector's", "at 0.5"],
        rows,
    )


def frequent(train: Split, images: Sequence[Image], classes: int, _seed: int) -> list[Boxes]:
    """In every image the box of mean place and shape, of each class, the most frequent first."""
    corners, labels = (np.concatenate([boxes[part] for boxes in train.boxes]) for part in (0, 1))
    known = [label for label in range(classes) if (labels == label).any()]
    share = np.array([(labels == label).mean() for label in known], np.float32)
    mean = np.array([corners[labels == label].mean(axis=0) for label in known], np.float32)
    order = np.argsort(-share, kind="stable")
    one = Boxes(mean.reshape(-1, 4)[order], np.array(known, np.int64)[order], share[order])
    return [one] * len(images)


def sliding(train: Split, images: Sequence[Image], classes: int, seed: int) -> list[Boxes]:
    """HOG windows (Dalal & Triggs 2005) at many sizes, and logistic regression on each.

    It learns twice: from windows on nothing that are drawn at random, then also from those that it
    took for something. What is found twice is left out by its IoU. It finds no boxes where there
    are not two classes, or no place beside the things.
    """
    generator = np.random.default_rng(seed)
    things = [
        (number, box, int(label))
        for number, boxes in enumerate(train.boxes)
        for box, label in zip(boxes.corners.astype(np.float64), boxes.labels, strict=True)
    ]
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    labels = np.array([label for *_, label in things])
    if len(np.unique(labels)) < 2:
        return [none] * len(images)
    tall = np.array([box[3] - box[1] for _, box, _ in things])
    taken = [
        np.concatenate([part[number].corners for part in (train.boxes, train.ignored) if part])
        for number in range(len(train.boxes))
    ]
    nothing: list[Window] = []
    sides = [np.array([image.shape[2], image.shape[1]]) for image in train.images]
    wanted = NEGATIVES * len(things)
    for _ in range(TRIES * wanted):
        number = int(generator.integers(len(train.images)))
        side = float(generator.choice(tall))
        corner = generator.uniform(0, np.maximum(sides[number] - side, 1))
        box = np.array([*corner, *(corner + side)])
        if overlaps(box[None], taken[number]).max(initial=0) < FREE:
            nothing.append((number, box, classes))
        if len(nothing) == wanted:
            break
    if not nothing:
        return [none] * len(images)
    windows = things + nothing
    features = _features(train.images, windows)
    shapes = np.array([(box[2] - box[0]) / (box[3] - box[1]) for _, box, _ in things])
    wide = np.ones(classes)
    for label in np.unique(labels):
        wide[label] = np.median(shapes[labels == label])
    low, high = np.log(np.quantile(tall, [0.01, 0.99]))
    heights = np.exp(np.linspace(low, high, SCALES))
    rule = _fit(features, windows, classes)
    hard: list[Window] = []
    for number, place in enumerate(taken[:MINED]):
        found = _search(train.images[number], *rule, heights, wide)
        free = overlaps(found.corners, place).max(axis=1, initial=0) < FREE
        wrong = found.corners[free & (found.scores > SURE)].astype(np.float64)
        hard += [(number, box, classes) for box in wrong]
    if hard:
        features = np.concatenate([features, _features(train.images, hard)])
        rule = _fit(features, windows + hard, classes)
    return [_search(image, *rule, heights, wide) for image in images]


def _features(images: Sequence[Image], windows: Sequence[Window]) -> NDArray[np.float32]:
    """The HOG of each window, [n, d]."""
    parts = (windows[start : start + 500] for start in range(0, len(windows), 500))
    return np.concatenate([_hog(_windows(images, part)).flatten(1).numpy() for part in parts])


def _fit(
    features: NDArray[np.float32], windows: Sequence[Window], classes: int
) -> tuple[Tensor, Tensor]:
    """Logistic regression as a convolution: its kernel and bias; the last class is nothing."""
    from sklearn.linear_model import LogisticRegression

    with one_thread():
        model = LogisticRegression(C=0.1, max_iter=100).fit(features, [one[2] for one in windows])
    weights = np.zeros((classes + 1, features.shape[1]), np.float32)
    bias = np.full(classes + 1, -1e9, np.float32)
    weights[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    kernel = torch.from_numpy(weights).view(classes + 1, ANGLES, *(WINDOW // CELL,) * 2)
    return kernel, torch.from_numpy(bias)


def _search(image: Image, kernel: Tensor, bias: Tensor, heights: Floats, wide: Floats) -> Boxes:
    """The boxes in one image: its windows at each height, then the surest of those that overlap."""
    grey, margin = torch.tensor(image).float().mean(0)[None, None], WINDOW // 4
    corners, labels, scores = [], [], []
    for height in heights:
        sides = [max(WINDOW, round(side * TALL / height)) for side in image.shape[1:]]
        scale = np.array([image.shape[2] / sides[1], image.shape[1] / sides[0]])
        small = F.interpolate(grey, size=sides, mode="bilinear", antialias=True)
        maps = _hog(F.pad(small, (margin,) * 4, mode="reflect"))
        chances = F.conv2d(maps, kernel, bias).softmax(1)[0, :-1]
        surest, best = chances.flatten().topk(min(KEPT, chances.numel()))
        label, cell = np.divmod(best.numpy(), chances[0].numel())
        down, across = np.divmod(cell, chances.shape[2])
        middle = (np.stack([across, down], 1) * CELL + WINDOW / 2 - margin) * scale
        reach = np.stack([wide[label] * TALL, np.full(len(label), TALL)], 1) * scale / 2
        corners.append(np.concatenate([middle - reach, middle + reach], 1))
        labels.append(label)
        scores.append(surest.numpy())
    corner, label, score = (np.concatenate(part) for part in (corners, labels, scores))
    corner = corner.clip(0, [image.shape[2], image.shape[1]] * 2)
    left: list[int] = np.argsort(-score, kind="stable").tolist()
    kept: list[int] = []
    covers = overlaps(corner, corner)
    while left and len(kept) < KEPT:
        kept.append(left.pop(0))
        left = [one for one in left if covers[kept[-1], one] < APART]
    return Boxes(corner[kept].astype(np.float32), label[kept], score[kept])


def _windows(images: Sequence[Image], places: Sequence[Window]) -> Tensor:
    """Windows [n, 1, WINDOW, WINDOW] around boxes (image, box, …), which are `TALL` pixels tall."""
    found = []
    for number, (x1, y1, x2, y2), _ in places:
        image = torch.tensor(images[number]).float().mean(0)[None, None]
        height, width = image.shape[2:]
        side = WINDOW / TALL * (y2 - y1)
        turn = torch.tensor(
            [[[side / width, 0, (x1 + x2) / width - 1], [0, side / height, (y1 + y2) / height - 1]]]
        ).float()
        grid = F.affine_grid(turn, [1, 1, WINDOW, WINDOW], align_corners=False)
        found.append(F.grid_sample(image, grid, padding_mode="reflection", align_corners=False))
    return torch.cat(found)


def _hog(images: Tensor) -> Tensor:
    """Histograms of gradients [b, ANGLES, h / CELL, w / CELL] of [b, 1, h, w]."""
    across = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
    down = F.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
    strength = (across**2 + down**2).sqrt()
    angle = torch.atan2(down, across) % math.pi / math.pi * ANGLES
    low = angle.floor()
    maps = images.new_zeros(len(images), ANGLES, *images.shape[2:])
    maps.scatter_add_(1, low.long() % ANGLES, strength * (1 - angle + low))
    maps.scatter_add_(1, (low.long() + 1) % ANGLES, strength * (angle - low))
    maps = F.avg_pool2d(maps, CELL)
    energy = F.avg_pool2d((maps**2).sum(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    return (maps / ((9 * energy).sqrt() + 1)).clamp_max(0.4)
