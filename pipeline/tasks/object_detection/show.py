"""What evaluation measures and draws of a detector."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import rounded
from pipeline.evaluation.learning import learning
from pipeline.evaluation.page import Page
from pipeline.figures.curves import Reliability, reliability_diagram, robustness_curves
from pipeline.figures.depth import probe_curves
from pipeline.figures.matrices import confusion_matrix
from pipeline.hardware import Hardware
from pipeline.images.damage import blur, noise
from pipeline.net import Net
from pipeline.prepared import SplitName
from pipeline.settings import Evaluate, Repeat
from pipeline.tasks.object_detection.boxes import pictures
from pipeline.tasks.object_detection.boxes.read import Boxes, Image, Split, read
from pipeline.tasks.object_detection.data import inputs
from pipeline.tasks.object_detection.evaluation import baselines, figures, matches
from pipeline.tasks.object_detection.evaluation.matches import Matches
from pipeline.tasks.object_detection.evaluation.metrics import (
    Precision,
    average_precision,
    coco_results,
)
from pipeline.tasks.object_detection.evaluation.probes import probe_cells
from pipeline.tasks.object_detection.model import Output, decode
from pipeline.tasks.object_detection.settings import ABOUT, Parts, TTFNet

DRAWN = 8
SIZES = ("small", "medium", "large")
BINS = 10
DAMAGES: dict[str, tuple[str, tuple[float, ...], Callable[[Any, float, int], Any]]] = {
    "noise": ("standard deviation, share of the range", (0, 0.05, 0.1, 0.2), noise),
    "blur": ("radius in pixels", (0, 0.5, 1, 2), blur),
    "contrast": (
        "share that is lost",
        (0, 0.3, 0.5, 0.7),
        lambda images, lost, _: _cut((images.astype(np.float32) - 128) * (1 - lost) + 128),
    ),
    "inversion": (
        "inverted or not",
        (0, 1),
        lambda images, inverted, _: 255 - images if inverted else images,
    ),
}


@dataclass
class Study:
    """What the parts share.

    Attributes:
        net: the trained network, on the hardware's device.
        settings: of the stage.
        hardware: what it computes on.
        curve: rows of the learning curve's table.
        sizes: see `Facts`.
        train, test: the splits.
    """

    net: Net
    settings: Evaluate
    hardware: Hardware
    curve: Sequence[Mapping[str, str]]
    sizes: Sequence[float]
    train: Split
    test: Split

    @property
    def parts(self) -> Parts:
        """Switches and sizes."""
        return self.settings.parts

    @property
    def classes(self) -> list[str]:
        """Their names."""
        return self.net.facts.classes

    @property
    def name(self) -> str:
        """What figures call the model."""
        return self.settings.model

    @cached_property
    def found(self) -> list[Boxes]:
        """What the network finds in each test image."""
        return self.detect(self.test.images)

    @cached_property
    def precision(self) -> Precision:
        """Of the test split."""
        return self.judge(self.found, self.test)

    @cached_property
    def matches(self) -> Matches:
        """Of the test split."""
        return matches.match(self.found, self.test.boxes, self.test.ignored)

    @property
    def threshold(self) -> float:
        """The score from which on the network's boxes are answers."""
        return self.net.module.get_buffer("threshold").item()

    def detect(self, images: Sequence[Image]) -> list[Boxes]:
        """The boxes found in images."""
        parts = [decode(output) for output in self.outputs(images)]
        return [boxes for part in parts for boxes in part]

    def outputs(self, images: Sequence[Image]) -> list[Output]:
        """What the network says of images, a batch at a time."""
        size, found = self.settings.batch_size, []
        for start in range(0, len(images), size):
            batch = inputs(list(images[start : start + size]), self.net)
            batch = {name: value.to(self.hardware.device) for name, value in batch.items()}
            with torch.inference_mode(), self.hardware.accelerator.autocast():
                found.append(self.net.module(**batch))
        return found

    def judge(self, found: Sequence[Boxes], split: Split) -> Precision:
        """How good boxes are."""
        return average_precision(found, split.boxes, len(self.classes), self.sizes, split.ignored)


def study(
    net: Net, settings: Evaluate, hardware: Hardware, curve: Sequence[Mapping[str, str]]
) -> Study:
    """A trained network and its data set, as the stage's settings name them.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than the network.
    """
    return _open(net, settings, hardware, curve, ("train", "test"))


def repetition(first: Net, second: Net, settings: Repeat, hardware: Hardware) -> dict[str, float]:
    """The second network's numbers; how it stands to the first on the same test images."""
    opened = [_open(net, settings, hardware, (), ("test",)) for net in (first, second)]
    numbers = _numbers(opened[1])
    against = matches.difference(opened[0].matches, opened[1].matches, settings.seed)
    return rounded(
        numbers
        | {
            "difference": opened[1].precision.map - opened[0].precision.map,
            "difference_low": against.low,
            "difference_high": against.high,
            "p_value": against.p_value,
        }
    )


def _open(
    net: Net,
    settings: Any,
    hardware: Hardware,
    curve: Sequence[Mapping[str, str]],
    splits: Sequence[SplitName],
) -> Study:
    found = {split: read(Path(settings.data), split) for split in splits}
    card = found["test"][0]
    if card.facts.classes != net.facts.classes:
        raise PipelineError(
            f"{settings.weights} knows the classes {', '.join(net.facts.classes)}, {settings.data} "
            f"has {', '.join(card.facts.classes)}; train the model on this data first"
        )
    net.module.to(hardware.device)
    net.module.eval()
    train = found["train"][1] if "train" in found else Split([], [])
    return Study(net, settings, hardware, curve, card.facts.sizes, train, found["test"][1])


def _numbers(study: Study) -> dict[str, float]:
    """The mean average precisions, and the interval of the headline."""
    found = study.precision
    low, high = matches.interval(study.matches, found.map, study.settings.seed)
    numbers = {"map": found.map, "map_low": low, "map_high": high, "map_50": found.map_50,
               "map_75": found.map_75, "recall_mean": found.recall}  # fmt: skip
    numbers |= {f"map/{size}": value for size, value in zip(SIZES, found.by_size, strict=True)} | {
        f"map/{name}": value for name, value in zip(study.classes, found.by_class, strict=True)
    }
    known = {name: float(value) for name, value in numbers.items() if not np.isnan(value)}
    return known | {"examples": len(study.test.images)}


def scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the tables that versions are compared by."""
    numbers, threshold, made = _numbers(study), study.threshold, study.matches
    kept = made.score >= threshold
    right, found, true = int(made.right[0, kept].sum()), int(kept.sum()), len(made.true_label)
    numbers |= {
        "threshold": threshold,
        "precision": right / max(found, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(found + true, 1),
    }
    empty = np.bincount(made.true_image, minlength=made.images) == 0
    if empty.any():
        numbers["false_boxes"] = float(empty[made.image[kept]].sum() / empty.sum())
        page.facts["false boxes in an empty image"] = f"{numbers['false_boxes']:.2f}"
    page.numbers |= numbers
    page.columns["mAP at IoU 0.5"] = f"{numbers['map_50']:.1%}"
    page.facts |= {
        "mAP at IoU 0.75": f"{numbers['map_75']:.1%}",
        "precision, recall and F1 at the threshold": f"{numbers['precision']:.1%}, "
        f"{numbers['recall']:.1%} and {numbers['f1']:.1%}; boxes count from a score of "
        f"{threshold:.2f} on, which was best for F1 on the validation split",
    }
    edges = ["0", *(f"{edge:g}" for edge in study.sizes), "∞"]
    page.show(
        "By size",
        ["Size", "Root of the area, pixels", "mAP"],
        (
            [size, f"{edges[place]}–{edges[place + 1]}", f"{numbers[f'map/{size}']:.1%}"]
            for place, size in enumerate(SIZES)
            if f"map/{size}" in numbers
        ),
    )
    page.show(
        "By class",
        ["Class", "AP"],
        (
            [name, f"{numbers[f'map/{name}']:.1%}"]
            for name in study.classes
            if f"map/{name}" in numbers
        ),
    )
    quality = matches.image_scores(made, threshold)
    count = np.bincount(made.image[kept], minlength=made.images)
    table = {"score": quality, "found": count, "true": [len(b.labels) for b in study.test.boxes]}
    pq.write_table(pa.table(table), page.folder / "predictions.parquet")
    (page.folder / "coco.json").write_text(json.dumps(coco_results(study.found)), encoding="utf-8")


def _learning(page: Page, study: Study) -> None:
    unit = "focal + GIoU" if isinstance(study.net.settings, TTFNet) else "torchvision's"
    learning(page, study.curve, study.name, ABOUT, unit)


def answers(page: Page, study: Study) -> None:
    """The first test images, and the worst."""
    test, threshold = study.test, study.threshold
    shown = [_above(boxes, threshold) for boxes in study.found]
    rows = range(min(DRAWN, len(test.images)))
    heat = [
        one.float().sigmoid().amax(0).cpu().numpy()
        for output in study.outputs(test.images[:DRAWN])
        for one in output.get("heat", ())
    ]
    dashes = "Dashed green is where a thing is, orange what was found, with its class and score"
    page.figure(
        "answers",
        pictures.boxes_sheet(
            [test.images[i] for i in rows], [test.boxes[i] for i in rows],
            [shown[i] for i in rows], study.classes, f"{study.name}: answers", heat,
        ),
        title="What is found",
        text=f"The first test images. {dashes}."
        + (
            " Below each is its heat map: how sure the network is at each cell of 4×4 pixels that "
            "a thing, of whatever class, has its centre there."
            if heat
            else ""
        ),
        alt=f"{len(rows)} images with boxes around what was found.",
    )  # fmt: skip
    quality = matches.image_scores(study.matches, threshold)
    worst = np.argsort(quality, kind="stable")[: study.settings.mistakes]
    page.figure(
        "mistakes",
        pictures.boxes_sheet(
            [test.images[i] for i in worst], [test.boxes[i] for i in worst],
            [shown[i] for i in worst], study.classes, f"{study.name}: its worst images",
        ),
        title="The worst images",
        text=f"The test images with the lowest F1, mean over the IoUs. {dashes}.",
        alt=f"{len(worst)} images whose found boxes and true ones differ.",
    )  # fmt: skip


def curves(page: Page, study: Study) -> None:
    """Precision against recall and threshold."""
    found = matches.sweep(study.matches)
    page.figure(
        "curves",
        figures.precision_and_recall(
            study.precision.curves, found, study.threshold, study.classes,
            f"{study.name}: precision and recall",
        ),
        title="Precision and recall",
        text="Left: precision among the surest boxes that reach a recall, of each class, at an IoU "
        "of 0.5. Right: what a threshold of the score gives over all classes; the dotted one, "
        "which the model keeps, had the best F1 on the validation split.",
        alt=f"Curves of precision by recall; the threshold is {study.threshold:.2f}.",
    )  # fmt: skip


def errors(page: Page, study: Study) -> None:
    """Confusion with the background, and kinds of error."""
    made, threshold, classes = study.matches, study.threshold, [*study.classes, "nothing"]
    table = matches.confusion(made, threshold, len(study.classes))
    page.figure(
        "confusion",
        confusion_matrix(table, classes, f"{study.name}: confusion"),
        title="Which class is found as which",
        text="Each found box above the threshold lies on the true box that it covers best, at an "
        "IoU of 0.5. The last row are boxes on nothing or on a thing that has its box, the last "
        "column things that were missed.",
        alt=f"Of {table[:-1].sum()} things {np.trace(table)} were found as what they are.",
    )
    kept = made.score >= threshold
    counts = {name: int((made.kind[kept] == kind).sum()) for kind, name in enumerate(matches.KINDS)}
    missed = len(made.true_label) - int((made.actual[kept] >= 0).sum())
    counts["missed"] = missed
    page.numbers |= {f"errors/{name.replace(' ', '_')}": value for name, value in counts.items()}
    page.table(
        "errors", [{"kind": name, "boxes": n} for name, n in counts.items()], ["kind", "boxes"]
    )
    page.figure(
        "errors",
        figures.kinds(counts, f"{study.name}: {int((made.kind[kept] < 0).sum())} boxes are right"),
        title="What goes wrong",
        text="Boxes above the threshold, after TIDE: of another class than the thing there; of its "
        "class but too far off (IoU of 0.1 to 0.5); both; a second one for a thing; on nothing. "
        "Missed are things that no box lies on.",
        alt=", ".join(f"{name} {count}" for name, count in counts.items()),
    )


def calibration(page: Page, study: Study) -> None:
    """Precision by score."""
    made = study.matches
    edges = np.linspace(0, 1, BINS + 1)
    where = np.clip((made.score * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(where, minlength=BINS)
    bins = np.flatnonzero(count)
    if not len(bins):
        return
    mean, right = (
        np.bincount(where, values, BINS)[bins] / count[bins]
        for values in (made.score, made.right[0].astype(np.float64))
    )
    table = Reliability(edges[bins], edges[bins + 1], mean, right, count[bins])
    error = float((np.abs(mean - right) * count[bins]).sum() / count.sum())
    page.numbers["ece"] = error
    rows = [dict(zip(table._fields, row, strict=True)) for row in zip(*table, strict=True)]
    page.table("reliability", rows, list(table._fields))
    page.figure(
        "reliability",
        reliability_diagram(table, None, [error], f"{study.name}: precision by score"),
        title="Is a score a probability?",
        text="Boxes by their score, and the share of them that is right at an IoU of 0.5. On the "
        "diagonal a score of 0.8 would be right in 8 of 10 cases.",
        alt=f"Precision by score; they differ by {error:.1%} on average.",
    )


def probes(page: Page, study: Study) -> None:
    """What a linear probe reads off a single cell of a heat map's network."""
    if not isinstance(study.net.settings, TTFNet):
        return
    train, test = (
        Split(split.images[:most], split.boxes[:most])
        for split, most in (
            (study.train, study.parts.probe_train),
            (study.test, study.parts.probe_test),
        )
    )
    found = probe_cells(study.net, train, test, study.hardware, study.settings.seed)
    if found is None:
        return
    rows = [
        {"question": question, "network": network, "depth": depth, "accuracy": one.value,
         "low": one.low, "high": one.high}
        for question, networks in found.items()
        for network, points in networks.items()
        for depth, one in points.items()
    ]  # fmt: skip
    page.table("probes", rows, list(rows[0]))
    last = {question: list(one["trained"].values())[-1].value for question, one in found.items()}
    page.figure(
        "probes",
        probe_curves(found),
        title="What a cell knows, by depth",
        text="A linear probe sees the maps at one cell: is it the middle of a thing or no part of "
        "one, and if it is one, which? Depths are named by the pixels from cell to cell, back is "
        "the way back to 4. The untrained network shows what the architecture gives away.",
        alt=", ".join(f"{question} {value:.1%} at the end" for question, value in last.items()),
    )


def robustness(page: Page, study: Study) -> None:
    """Mean average precision on damaged images."""
    images, truth, ignored = test = study.test.first(study.parts.damaged)
    seed = study.settings.seed
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for kind, (_, severities, damage) in DAMAGES.items():
        points[kind] = []
        for severity in severities:
            changed = [damage(image[None], severity, seed + n)[0] for n, image in enumerate(images)]
            found = study.detect(changed)
            value = study.judge(found, test).map
            value = 0.0 if np.isnan(value) else value
            made = matches.match(found, truth, ignored)
            points[kind].append((severity, value, *matches.interval(made, value, seed, 200)))
    rows = [
        {"kind": kind, "severity": point[0], "map": point[1], "low": point[2], "high": point[3]}
        for kind, found in points.items()
        for point in found
    ]
    page.table("robustness", rows, ["kind", "severity", "map", "low", "high"])
    page.numbers |= {f"robustness/{kind}": found[-1][1] for kind, found in points.items()}
    units = {kind: unit for kind, (unit, _, _) in DAMAGES.items()}
    page.figure(
        "robustness",
        robustness_curves(points, units, 0, f"{study.name}: damaged images", "mAP"),
        title="How it stands damage",
        text=f"Mean average precision on {len(images)} test images with damage that training did "
        "not show, or showed less of, and its 95 % interval.",
        alt=", ".join(f"{kind}: {found[0][1]:.1%} to {found[-1][1]:.1%}"
                      for kind, found in points.items()),
    )  # fmt: skip


def simple(page: Page, study: Study) -> None:
    """What simpler rules find, on the images that they were measured on."""
    parts, test = study.parts, study.test
    train = study.train.first(parts.hog_train)
    rules = {
        "most frequent box": (len(test.images), baselines.frequent),
        "HOG + linear": (parts.hog_test, baselines.sliding),
    }
    rows = []
    for rule, (most, find) in rules.items():
        part = test.first(most)
        found = find(
            study.train.first(parts.hog_train), part.images, len(study.classes), study.settings.seed
        )
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


PARTS = {
    "learning": _learning,
    "answers": answers,
    "curves": curves,
    "errors": errors,
    "calibration": calibration,
    "probes": probes,
    "robustness": robustness,
    "baselines": simple,
    "scores": scores,
}
"""In the order in which they are measured and shown."""


def _above(boxes: Boxes, threshold: float) -> Boxes:
    kept = boxes.scores >= threshold
    return boxes.where(kept)


def _cut(images: Any) -> Any:
    return np.clip(images.round(), 0, 255).astype(np.uint8)
