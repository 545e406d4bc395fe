"""What is in a prepared data set of labelled examples: balance, sizes, repeats, samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data.examples import Examples, Raw, Read, read_examples
from pipeline.evaluation import audit
from pipeline.figures import data as figures
from pipeline.figures.page import Page
from pipeline.figures.sheets import Caption
from pipeline.figures.style import shorten
from pipeline.prepared import SPLITS, Card

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = {"train": 8000, "validation": 2000, "test": 2000}
"""The first rows of each split, in which near duplicates are sought, at most."""


@dataclass(frozen=True)
class Look:
    """What the data reports of images, texts and sounds differ in.

    Attributes:
        column: of the prepared tables, the one that holds the examples.
        read: makes raw examples of it.
        sizes: a number for each raw example, given the facts.
        unit: its unit.
        features: unit vectors of the raw examples of each split, for `audit.near_duplicates`.
        near: cosine above which two examples count as nearly the same; found by looking at pairs.
        shown: samples on the sheet, at most.
        sheet: a figure of raw examples, given the facts, with a caption each and a title.
    """

    column: str
    read: Read
    sizes: Callable[[Raw, Any], NDArray[Any]]
    unit: str
    features: Callable[[Mapping[str, Raw]], Mapping[str, Any]]
    near: float
    shown: int
    sheet: "Callable[[Raw, Any, Sequence[Caption], str], Figure]"


def report(look: Look, folder: Path, card: Card, page: Page) -> dict[str, float]:
    """Look through a prepared data set; figures, tables and findings go to `page`.

    Returns:
        Counts for tracking: rows, and near duplicates within and across splits.

    Raises:
        PipelineError: a split is missing or damaged.
    """
    splits = {
        split: read_examples(folder, split, card.task, look.column, look.read) for split in SPLITS
    }
    classes = card.facts.classes
    counts = audit.balance({name: part.labels for name, part in splits.items()}, classes)
    rows = [
        {"split": split, "class": name, "rows": count}
        for split, found in counts.items()
        for name, count in found.items()
    ]
    page.table("balance", rows, ["split", "class", "rows"])
    sizes: dict[str, NDArray[Any]] = {
        name: look.sizes(part.raw, card.facts) for name, part in splits.items()
    }
    spans = {split: _span(list(found.values())) for split, found in counts.items()}
    page.figure(
        "balance",
        figures.balance_and_sizes(counts, sizes, look.unit, f"{card.name}: balance and sizes"),
        title="Class balance and sizes",
        text=f"In training each class has {spans['train']} examples. The splits should have "
        "the same shares and the same spread of sizes: else the test measures something that was "
        "not trained.",
        alt="; ".join(f"{split}: {sum(found.values())} rows" for split, found in counts.items()),
    )
    _samples(page, look, splits["train"], card)
    features = look.features({name: part.raw[: ROWS[name]] for name, part in splits.items()})
    among = f"among the first {ROWS['train']:,} + {ROWS['validation']:,} + {ROWS['test']:,} rows"
    told, near = audit.list_duplicates(page, features, look.near, among)
    train = audit.summary(sizes["train"])
    left_out = ", ".join(f"{count} {name}" for name, count in sorted(card.dropped.items()))
    page.findings |= {
        "Rows in a class": ", ".join(f"{name} {span}" for name, span in spans.items()),
        "Exact duplicates": "none in two splits (the preparation stops at one); left out: "
        f"{left_out}",
        "Near duplicates": told,
        "Sizes in training": f"{train['min']:g} to {train['max']:g} {look.unit}, half of them "
        f"{train['q1']:g} to {train['q3']:g}",
    }
    return {
        **{f"rows/{name}": float(len(part)) for name, part in splits.items()},
        **near,
    }


def _span(counts: list[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _samples(page: Page, look: Look, train: Examples, card: Card) -> None:
    """The first examples of each class in turn."""
    classes, most = card.facts.classes, look.shown
    by_class = [np.flatnonzero(train.labels == label) for label in range(len(classes))]
    turns = [int(rows[turn]) for turn in range(most) for rows in by_class if turn < len(rows)]
    rows = turns[:most]
    captions = [
        Caption(f"train row {row}", shorten(classes[train.labels[row]], 16), wrong=False)
        for row in rows
    ]
    page.figure(
        "samples",
        look.sheet(train.take(rows).raw, card.facts, captions, f"{card.name}: samples"),
        title="Samples",
        text=f"The first training examples of each class in turn, {len(rows)} in all. Are the "
        "labels what you would say, and is this what the model will meet?",
        alt="; ".join(f"{one.first}: {one.second}" for one in captions),
    )
