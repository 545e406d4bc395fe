"""Which found boxes are right: made once, then resampled, cut at a score, sorted into kinds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Floats, Integers, Interval
from pipeline.tasks.object_detection.boxes.read import Boxes
from pipeline.tasks.object_detection.evaluation.metrics import IOUS

KINDS = ("class", "place", "class and place", "duplicate", "background")
"""Of wrong boxes, after TIDE (Bolya et al. 2020): of another class than the thing there, on it but
too far off, both, on one that has its box already, on nothing."""
NEAR = 0.1
"""IoU from which a wrong box is on a thing."""
DRAWS = 1000
"""Of the images, for an interval."""

Bools = NDArray[np.bool_]
Floats32 = NDArray[np.float32]


class Matches(NamedTuple):
    """The boxes of all images, the surest first.

    Attributes:
        image, label, score: of each found box, [n].
        right: whether it is one of the true ones at each of the IoUs, [IOUS, n]: at each the
            surest box takes the true box of its class that it covers best.
        kind: -1 of one that is right at an IoU of 0.5, else an index into `KINDS`, [n].
        actual: class of the true box that lies under it at an IoU of 0.5, whatever class it was
            given; -1 of none. Each true box lies under one found box, at most.
        true_image, true_label: of each true box, [m].
        images: how many there are.
    """

    image: Integers
    label: Integers
    score: Floats
    right: Bools
    kind: Integers
    actual: Integers
    true_image: Integers
    true_label: Integers
    images: int


def match(found: Sequence[Boxes], truth: Sequence[Boxes], ignored: Sequence[Boxes] = ()) -> Matches:
    """Say of each found box what it is; one that lies on an ignored one of its class is nothing."""
    if ignored:
        found = [_counted(*three) for three in zip(found, truth, ignored, strict=True)]
    image, true_image = (
        np.repeat(np.arange(len(boxes)), [len(one.labels) for one in boxes])
        for boxes in (found, truth)
    )
    label, score = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("labels", "scores")
    )
    true_label = np.concatenate([one.labels for one in truth])
    box, true, cover = _near(found, truth)
    same, over = label[box] == true_label[true], cover >= IOUS[0]
    kind = np.full(len(label), KINDS.index("background"))
    kind[box] = KINDS.index("class and place")
    for name, pairs in (("place", same), ("class", over), ("duplicate", same & over)):
        kind[box[pairs]] = KINDS.index(name)
    # a box takes the true one that it covers best, so that pair comes first
    order = np.flatnonzero(over)[np.lexsort((-cover[over], box[over]))]
    box, true = box[order], true[order]
    # at each of the IoUs a pair is of one class, in the last column of any two
    fits = np.column_stack([same[order, None] & (cover[order, None] >= IOUS), over[order]])
    taken = _taken(image[box], box, true, fits)
    right, actual = np.zeros((len(IOUS), len(label)), np.bool_), np.full(len(label), -1)
    pair, row = np.nonzero(taken[:, :-1])
    right[row, box[pair]] = True
    kind[right[0]] = -1
    actual[box[taken[:, -1]]] = true_label[true[taken[:, -1]]]
    order = np.argsort(-score, kind="stable")
    return Matches(
        image[order], label[order], score[order].astype(np.float64), right[:, order], kind[order],
        actual[order], true_image, true_label, len(found),
    )  # fmt: skip


def _near(found: Sequence[Boxes], truth: Sequence[Boxes]) -> tuple[Integers, Integers, Floats]:
    """Box, true box and IoU of each pair that is near; boxes are counted over all images."""
    parts, boxes, trues = [], 0, 0
    for one, true in zip(found, truth, strict=True):
        covers = overlaps(one.corners, true.corners)
        pairs = np.nonzero(covers >= NEAR)
        parts.append((pairs[0] + boxes, pairs[1] + trues, covers[pairs]))
        boxes, trues = boxes + len(one.labels), trues + len(true.labels)
    box, true_box, cover = (np.concatenate(each) for each in zip(*parts, strict=True))
    return box, true_box, cover


def _taken(image: Integers, box: Integers, true: Integers, fits: Bools) -> Bools:
    """Which pairs stay when each takes its two boxes, if both are free; each column for itself."""
    taken = np.zeros_like(fits)
    open_box, open_true = (
        np.ones((each.max(initial=-1) + 1, fits.shape[1]), np.bool_) for each in (box, true)
    )
    _, first, count = np.unique(image, return_index=True, return_counts=True)
    for step in range(count.max(initial=0)):  # the next pair of every image
        pair = first[count > step] + step
        taken[pair] = now = fits[pair] & open_box[box[pair]] & open_true[true[pair]]
        open_box[box[pair]] &= ~now
        open_true[true[pair]] &= ~now
    return taken


def overlaps(first: Floats32, second: Floats32) -> Floats:
    """IoU of boxes [n, 4] with boxes [m, 4], [n, m]."""
    both, areas = _common(first, second)
    return both / np.maximum(areas[0] + areas[1] - both, 1e-9)


def _common(first: Floats32, second: Floats32) -> tuple[Floats, list[Floats]]:
    """The area that boxes have in common, [n, m], and the areas of both, [n, 1] and [1, m]."""
    first, second = first.T[..., None].astype(np.float64), second.T[:, None].astype(np.float64)
    width, height = (
        (np.minimum(first[end], second[end]) - np.maximum(first[start], second[start])).clip(0)
        for start, end in ((0, 2), (1, 3))
    )
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (first, second)]
    return width * height, areas


def _counted(found: Boxes, truth: Boxes, ignored: Boxes) -> Boxes:
    if not len(ignored.labels):
        return found
    both, (mine, _) = _common(found.corners, ignored.corners)
    inside = both / np.maximum(mine, 1e-9) * (found.labels[:, None] == ignored.labels)
    on = overlaps(found.corners, truth.corners) * (found.labels[:, None] == truth.labels)
    least = IOUS[0]
    return found.where((inside.max(1, initial=0) < least) | (on.max(1, initial=0) >= least))


def resampled(matches: Matches, weights: Floats) -> Floats:
    """The mean average precision of each of many draws of the images.

    Args:
        matches: of one detector.
        weights: how often each image is drawn, [draws, images].

    Returns:
        COCO's mean over classes, IoUs and 101 recalls, [draws]. Nothing is matched again.
    """
    drawn = np.ascontiguousarray(weights.T, np.float32)
    sums, known = np.zeros(len(weights)), np.zeros(len(weights))
    for label in np.unique(matches.true_label):
        true = np.bincount(matches.true_image[matches.true_label == label], minlength=len(drawn))
        there = true.astype(np.float32) @ drawn
        mine = matches.label == label
        # a row for each box, so that they are counted up in all draws at once
        answered = np.zeros((mine.sum() + 1, len(weights)), np.float32)
        for place, image in enumerate(matches.image[mine]):
            np.add(answered[place], drawn[image], out=answered[place + 1])
        for right in matches.right[:, mine]:
            sums += _area(right, answered, there)
        known += there > 0
    return sums / np.maximum(known, 1) / len(IOUS)


def _area(right: Bools, answered: Floats32, there: Floats32) -> Floats:
    """Mean precision at the 101 recalls, of one class at one IoU, [draws]."""
    # precision rises along a run of right boxes, so that only its end has to be looked at
    edges = np.flatnonzero(np.diff(right, prepend=False, append=False))
    before, after = answered[edges[::2]], answered[edges[1::2]]
    hits = np.subtract(after, before, out=before)
    _accumulate(np.add, hits)
    precision = np.divide(hits, np.maximum(after, 1, out=after), out=after)
    _accumulate(np.maximum, precision[::-1])
    # of the recalls 0, 0.01 … 1, those that each run is the first to reach, whatever is rounded
    gained = np.floor(np.multiply(hits, 100 * (1 + 1e-6) / np.maximum(there, 1), out=hits))
    gained[1:] -= gained[:-1]
    gained[:1] += 1
    return np.einsum("rd,rd->d", precision, gained, dtype=np.float64) / 101


def _accumulate(function: np.ufunc, rows: Floats32) -> None:
    """As the function's own method does along the first axis, in place; fast for long rows."""
    for before, row in pairwise(rows):
        function(before, row, out=row)


def draws(images: int, seed: int, count: int = DRAWS) -> Floats:
    """How often each image is in each of `count` draws with replacement, [count, images]."""
    generator = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    return generator.multinomial(images, share, count).astype(np.float64)


def interval(matches: Matches, value: float, seed: int, count: int = DRAWS) -> Interval:
    """95 % bootstrap interval of the mean average precision over images.

    Few images with few boxes of a class are easier when drawn again, so the interval is made to
    hold `value`, which is of all of them.
    """
    found = resampled(matches, draws(matches.images, seed, count))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(min(float(low), value), max(float(high), value))


class Difference(NamedTuple):
    """Of two detectors' mean average precision: 95 % interval, and two-sided p-value."""

    low: float
    high: float
    p_value: float


def difference(first: Matches, second: Matches, seed: int) -> Difference:
    """How the second detector stands to the first, on the same draws of the same images."""
    weights = draws(first.images, seed)
    gains = resampled(second, weights) - resampled(first, weights)
    low, high = np.quantile(gains, [0.025, 0.975])
    # a difference that no draw turns round is as rare as one in all draws, not impossible
    tail = (min((gains <= 0).sum(), (gains >= 0).sum()) + 1) / (len(gains) + 1)
    return Difference(float(low), float(high), min(1.0, 2 * float(tail)))


class Sweep(NamedTuple):
    """Precision, recall and F1 at an IoU of 0.5 when boxes of each score and above count."""

    score: Floats
    precision: Floats
    recall: Floats
    f1: Floats


def sweep(matches: Matches) -> Sweep:
    """What each threshold of the score gives, from the highest to the lowest."""
    right = matches.right[0].cumsum()
    found, true = np.arange(1, len(right) + 1), max(len(matches.true_label), 1)
    return Sweep(matches.score, right / found, right / true, 2 * right / (found + true))


def best_threshold(matches: Matches) -> float:
    """The score from which on boxes count if F1 is to be the highest; 0.5 where none is found."""
    found = sweep(matches)
    return float(found.score[found.f1.argmax()]) if len(found.score) else 0.5


def image_scores(matches: Matches, threshold: float) -> Floats:
    """F1 of each image at a threshold, mean over the IoUs, [images]; 1 if rightly left empty."""
    kept = matches.score >= threshold
    found = np.bincount(matches.image[kept], minlength=matches.images)
    true = np.bincount(matches.true_image, minlength=matches.images)
    right = np.stack(
        [np.bincount(matches.image[kept & row], minlength=matches.images) for row in matches.right]
    )
    both = found + true
    return np.where(both > 0, 2 * right / np.maximum(both, 1), 1.0).mean(axis=0)


def confusion(matches: Matches, threshold: float, classes: int) -> Integers:
    """Counts [actual, found] at an IoU of 0.5; the last row and column are the background."""
    kept = matches.score >= threshold
    table = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(table, (matches.actual[kept], matches.label[kept]), 1)
    table[:classes, classes] = np.bincount(matches.true_label, minlength=classes) - table[
        :classes, :classes
    ].sum(axis=1)
    return table
