"""What the preparation draws of images with boxes."""

from pathlib import Path

import numpy as np

from pipeline.evaluation import audit
from pipeline.figures.data import HATCHES
from pipeline.figures.page import Page
from pipeline.figures.style import CYCLE, LINES, canvas, shorten
from pipeline.prepared import SPLITS, Card
from pipeline.tasks.object_detection.boxes.pictures import boxes_sheet
from pipeline.tasks.object_detection.boxes.read import Split, read

ROWS = {"train": 4000, "validation": 1000, "test": 1000}
"""The first images of each split, in which near duplicates are sought, at most."""
NEAR = 0.97
SHOWN = 12
THUMB = 32
"""Pixels a side of what near duplicates are told by."""


def data_report(folder: Path, card: Card, page: Page) -> dict[str, float]:
    """Classes, boxes of an image, their sizes and shapes; images with their boxes; repeats.

    Raises:
        PipelineError: a split is missing or damaged.
    """
    splits: dict[str, Split] = {split: read(folder, split)[1] for split in SPLITS}
    classes = card.facts.classes
    labels = {
        split: np.concatenate([one.labels for one in part.boxes]) for split, part in splits.items()
    }
    counts = audit.balance(labels, classes)
    rows = [
        {"split": split, "class": name, "boxes": count}
        for split, found in counts.items()
        for name, count in found.items()
    ]
    page.table("balance", rows, ["split", "class", "boxes"])
    numbers = {split: [len(one.labels) for one in part.boxes] for split, part in splits.items()}
    sides = {split: _sides(part) for split, part in splits.items()}
    _shapes(page, card, counts, numbers, sides)
    train = splits["train"]
    page.figure(
        "samples",
        boxes_sheet(train.images[:SHOWN], train.boxes[:SHOWN], None, classes, "Samples"),
        title="Samples",
        text=f"The first {min(SHOWN, len(train.images))} training images with their boxes. Does "
        "each thing have a box, does it fit, and is this what the model will meet?",
        alt="Images with boxes and the class of each.",
    )
    features = {
        split: audit.dense_features(_thumbs(part, ROWS[split])) for split, part in splits.items()
    }
    told, near = audit.list_duplicates(
        page, features, NEAR, f"at {THUMB}×{THUMB} pixels", "pairs of images"
    )
    roots = np.sqrt(sides["train"].prod(axis=1))
    page.findings |= {
        "Boxes": ", ".join(
            f"{split} {sum(numbers[split]):,} in {len(numbers[split]):,} images, "
            f"{numbers[split].count(0)} of them empty"
            for split in SPLITS
        ),
        "Sizes in training": f"root of the area {roots.min():.0f} to {roots.max():.0f} pixels; "
        f"small is below {card.facts.sizes[0]:g}, large from {card.facts.sizes[1]:g} on, a third "
        "of the boxes each",
        "Near duplicates": told,
    }
    return {
        **{f"rows/{split}": float(len(part.images)) for split, part in splits.items()},
        **{f"boxes/{split}": float(sum(found)) for split, found in numbers.items()},
        **near,
    }


def _sides(split: Split) -> np.ndarray:
    """Width and height of every box, [n, 2]."""
    corners = np.concatenate([one.corners for one in split.boxes]).astype(np.float64)
    return corners[:, 2:] - corners[:, :2]


def _thumbs(split: Split, most: int) -> np.ndarray:
    """Grey pictures of one size of the first images, [n, THUMB, THUMB]."""
    from PIL import Image

    small = [
        Image.fromarray(image.mean(axis=0).astype(np.uint8)).resize((THUMB, THUMB))
        for image in split.images[:most]
    ]
    return np.stack([np.asarray(one) for one in small])


def _shapes(
    page: Page,
    card: Card,
    counts: dict[str, dict[str, int]],
    numbers: dict[str, list[int]],
    sides: dict[str, np.ndarray],
) -> None:
    figure = canvas(9, 5, f"{card.name}: boxes")
    (classes, images), (sizes, shapes) = figure.subplots(2, 2)
    width = 0.8 / len(SPLITS)
    names = [shorten(name, 10) for name in card.facts.classes]
    most = max(max(part) for part in numbers.values())
    for number, split in enumerate(SPLITS):
        colour, line, offset = CYCLE[number], LINES[number], (number - 1) * width
        bars = {"color": colour, "hatch": HATCHES[number], "edgecolor": "white", "label": split}
        found = np.array(list(counts[split].values()))
        classes.bar(np.arange(len(names)) + offset, found / max(found.sum(), 1), width, **bars)
        share = np.bincount(numbers[split], minlength=most + 1) / len(numbers[split])
        images.bar(np.arange(most + 1) + offset, share, width, **bars)
        roots = np.sort(np.sqrt(sides[split].prod(axis=1)))
        ratios = np.sort(sides[split][:, 0] / sides[split][:, 1])
        for axes, values in ((sizes, roots), (shapes, ratios)):
            heights = (np.arange(len(values)) + 1) / len(values)
            axes.plot(values, heights, color=colour, ls=line, label=split)
    classes.set(title="share of the boxes by class", xticks=range(len(names)), xticklabels=names)
    images.set(title="share of the images by number of boxes", xticks=range(most + 1))
    sizes.set(title="share of the boxes up to this size", xlabel="root of the area, pixels")
    shapes.set(title="share of the boxes up to this shape", xlabel="width : height")
    for axes in (classes, images, sizes, shapes):
        axes.title.set_fontsize(9)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    sizes.legend(fontsize=7.5)
    page.figure(
        "boxes",
        figure,
        title="Classes, numbers, sizes and shapes of the boxes",
        text="The splits should have the same shares and the same spread: else the test measures "
        "something that was not trained.",
        alt="; ".join(f"{split}: {sum(found)} boxes" for split, found in numbers.items()),
    )
