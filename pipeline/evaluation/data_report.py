"""What is in a prepared data set: balance, sizes, repeats, and a sheet of samples."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.prepared import SPLITS, read_card
from pipeline.evaluation import audit
from pipeline.evaluation.examples import Examples, Task, read_examples
from pipeline.evaluation.page import Page
from pipeline.figures import data as figures
from pipeline.figures import sheets
from pipeline.figures.style import shorten
from pipeline.files import write_json

Split = Literal["train", "validation", "test"]
NEAR: dict[Task, float] = {"image": 0.97, "text": 0.8, "audio": 0.995}
"""Cosine above which two examples count as nearly the same; found by looking at the pairs."""
ROWS = {"train": 8000, "validation": 2000, "test": 2000}
"""The first rows of each split, in which near duplicates are sought, at most."""
SHOWN, LISTED = 24, 200


def data_report(folder: Path, output: Path) -> dict[str, float]:
    """Look through a prepared data set; writes figures, tables and `findings.json` into `output`.

    Returns:
        Counts for tracking: rows, and near duplicates within and across splits.

    Raises:
        PipelineError: a split is missing or damaged.
    """
    card = read_card(folder)
    splits: dict[Split, Examples] = {split: read_examples(folder, split) for split in SPLITS}
    page = Page(output)
    counts = audit.balance({name: part.labels for name, part in splits.items()}, card.classes)
    rows = [
        {"split": split, "class": name, "rows": count}
        for split, classes in counts.items()
        for name, count in classes.items()
    ]
    page.table("balance", rows, ["split", "class", "rows"])
    sizes, unit = _sizes(card.task, splits, card.sample_rate)
    least = min(row["rows"] for row in rows if row["split"] == "train")
    most = max(row["rows"] for row in rows if row["split"] == "train")
    page.figure(
        "balance",
        figures.balance_and_sizes(counts, sizes, unit, f"{card.name}: balance and sizes"),
        title="Class balance and sizes",
        text=f"In training each class has {_span(least, most)} examples. The splits should have "
        "the same shares and the same spread of sizes: else the test measures something that was "
        "not trained.",
        alt="; ".join(
            f"{split}: {sum(classes.values())} rows" for split, classes in counts.items()
        ),
    )
    _samples(page, card.task, splits["train"], card.classes, card.name, card.sample_rate)
    near = _near(card.task, splits)
    pairs = [
        {
            "first": f"{pair.first[0]} {pair.first[1]}",
            "second": f"{pair.second[0]} {pair.second[1]}",
            "similarity": pair.similarity,
        }
        for pair in near[:LISTED]
    ]
    page.table("near_duplicates", pairs, ["first", "second", "similarity"])
    apart = audit.across(near)
    spans = {split: audit.summary(values) for split, values in sizes.items()}
    write_json(output / "findings.json", _findings(card.dropped, near, spans, unit, card.task))
    page.close()
    return {
        **{f"rows/{name}": float(len(part)) for name, part in splits.items()},
        "near_duplicates/within": float(len(near) - len(apart)),
        "near_duplicates/across": float(len(apart)),
    }


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _findings(
    dropped: dict[str, int],
    near: list[audit.Duplicate],
    spans: dict[str, dict[str, float]],
    unit: str,
    task: Task,
) -> list[dict[str, str]]:
    """Lines for the report: name and text."""
    left_out = ", ".join(f"{count} {name}" for name, count in sorted(dropped.items()))
    apart = audit.across(near)
    train = spans["train"]
    return [
        {
            "name": "Exact duplicates",
            "text": f"none in two splits (the preparation stops at one); left out: {left_out}",
        },
        {
            "name": "Near duplicates",
            "text": f"{len(apart)} pairs across splits and {len(near) - len(apart)} within one, "
            f"with a similarity of {NEAR[task]} or more among the first {ROWS['train']:,} + "
            f"{ROWS['validation']:,} + {ROWS['test']:,} rows; the closest are listed in "
            "near_duplicates.csv",
        },
        {
            "name": "Sizes in training",
            "text": f"{train['min']:g} to {train['max']:g} {unit}, half of them {train['q1']:g} to "
            f"{train['q3']:g}",
        },
    ]


def _sizes(
    task: Task, splits: dict[Split, Examples], sample_rate: int | None
) -> tuple[dict[str, NDArray[Any]], str]:
    if task == "image":
        return {
            name: part.raw.reshape(len(part), -1).mean(axis=1) / 2.55
            for name, part in splits.items()
        }, "% of full ink"
    if task == "text":
        return {
            name: np.array([len(text.split()) for text in part.raw])
            for name, part in splits.items()
        }, "words"
    rate = sample_rate or 1
    return {
        name: np.array([len(wave) for wave in part.raw]) / rate for name, part in splits.items()
    }, "seconds"


def _near(task: Task, splits: dict[Split, Examples]) -> list[audit.Duplicate]:
    raw: dict[str, Any] = {name: part.raw[: ROWS[name]] for name, part in splits.items()}
    features: dict[str, Any]
    if task == "text":
        features = audit.text_features(raw)
    elif task == "image":
        features = {name: audit.dense_features(part) for name, part in raw.items()}
    else:
        features = {
            name: audit.dense_features(np.stack([audit.loudness_map(wave) for wave in part]))
            for name, part in raw.items()
        }
    return audit.near_duplicates(features, NEAR[task])


def _samples(
    page: Page, task: Task, train: Examples, classes: list[str], name: str, rate: int | None
) -> None:
    """The first examples of each class in turn."""
    by_class = [np.flatnonzero(train.labels == label) for label in range(len(classes))]
    turns = [int(rows[turn]) for turn in range(SHOWN) for rows in by_class if turn < len(rows)]
    most = {"image": SHOWN, "text": 8, "audio": 8}[task]
    rows = turns[:most]
    captions = [
        sheets.Caption(f"train row {row}", shorten(classes[train.labels[row]], 16), False)
        for row in rows
    ]
    chosen = train.take(rows)
    title = f"{name}: samples"
    if task == "image":
        figure = sheets.image_sheet(chosen.raw, captions, title, columns=8)
    elif task == "text":
        figure = sheets.text_sheet(chosen.raw, captions, title)
    else:
        pictures = [audit.spectrum(wave) for wave in chosen.raw]
        seconds = [len(wave) / (rate or 1) for wave in chosen.raw]
        figure = sheets.spectrogram_sheet(pictures, seconds, captions, title)
    page.figure(
        "samples",
        figure,
        title="Samples",
        text=f"The first training examples of each class in turn, {len(rows)} in all. Are the "
        "labels what you would say, and is this what the model will meet?",
        alt="; ".join(f"{one.first}: {one.second}" for one in captions),
    )
