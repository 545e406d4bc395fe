"""What evaluation measures and draws of the boxes that were found."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.evaluation.calibration import calibration_error, reliability
from pipeline.evaluation.intervals import Floats
from pipeline.evaluation.learning import learning
from pipeline.figures.curves import reliability_diagram, robustness_curves
from pipeline.figures.matrices import confusion_matrix
from pipeline.figures.page import Page
from pipeline.images.damage import blur, noise
from pipeline.tasks.object_detection.boxes.pictures import boxes_sheet
from pipeline.tasks.object_detection.evaluation import figures, matches
from pipeline.tasks.object_detection.evaluation.metrics import coco_results
from pipeline.tasks.object_detection.evaluation.study import SIZES, Study, numbers_of
from pipeline.tasks.object_detection.settings import ABOUT, TTFNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES = "Dashed green is where a thing is, orange what was found, with its class and score"
DRAWN = 8
"""The first test images that are drawn, at most."""
BINS = 10
"""Of scores, in the reliability diagram."""


def _faded(images: NDArray[np.uint8], lost: float, _seed: int) -> NDArray[np.uint8]:
    faded = (images.astype(np.float32) - 128) * (1 - lost) + 128
    return np.clip(faded.round(), 0, 255).astype(np.uint8)


DAMAGES: dict[str, tuple[str, tuple[float, ...], Callable[[Any, float, int], Any]]] = {
    "noise": ("standard deviation, share of the range", (0, 0.05, 0.1, 0.2), noise),
    "blur": ("radius in pixels", (0, 0.5, 1, 2), blur),
    "contrast": ("share that is lost", (0, 0.3, 0.5, 0.7), _faded),
    "inversion": (
        "inverted or not",
        (0, 1),
        lambda images, much, _: 255 - images if much else images,
    ),
}


def learnt(page: Page, study: Study) -> None:
    """Loss, precision and learning rate by epoch."""
    unit = "focal + GIoU" if isinstance(study.net.settings, TTFNet) else "torchvision's"
    learning(page, study.curve, study.name, ABOUT, unit)


def answers(page: Page, study: Study) -> None:
    """The first test images, and the worst."""
    rows = range(min(DRAWN, len(study.test.images)))
    heat = [
        one.float().sigmoid().amax(0).cpu().numpy()
        for output in study.outputs(study.test.images[:DRAWN])
        for one in output.get("heat", ())
    ]
    below = (
        " Below each is its heat map: how sure the network is at each cell of 4×4 pixels that a "
        "thing, of whatever class, has its centre there and a box that lies well."
    )
    page.figure(
        "answers",
        _sheet(study, rows, "answers", heat),
        title="What is found",
        text=f"The first test images. {DASHES}.{below if heat else ''}",
        alt=f"{len(rows)} images with boxes around what was found.",
    )
    quality = matches.image_scores(study.matches, study.threshold)
    worst = np.argsort(quality, kind="stable")[: study.settings.mistakes].tolist()
    page.figure(
        "mistakes",
        _sheet(study, worst, "its worst images"),
        title="The worst images",
        text=f"The test images with the lowest F1, mean over the IoUs. {DASHES}.",
        alt=f"{len(worst)} images whose found boxes and true ones differ.",
    )


def _sheet(
    study: Study, rows: Sequence[int], title: str, heat: Sequence[Floats] | None = None
) -> "Figure":
    found = [study.found[row] for row in rows]
    return boxes_sheet(
        [study.test.images[row] for row in rows],
        [study.test.boxes[row] for row in rows],
        [boxes.where(boxes.scores >= study.threshold) for boxes in found],
        study.classes,
        f"{study.name}: {title}",
        heat,
    )


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
    if not len(made.score):
        return
    table = reliability(made.score, made.right[0], BINS)
    error = calibration_error(table)
    page.numbers["ece"] = error
    rows = [dict(zip(table._fields, row, strict=True)) for row in zip(*table, strict=True)]
    page.table("reliability", rows, list(table._fields))
    page.figure(
        "reliability",
        reliability_diagram(table, None, [error], f"{study.name}: precision by score"),
        title="Is a score a probability?",
        text="Boxes by their score, and the share of them that is right at an IoU of 0.5. On the "
        "diagonal a score of 0.8 would be right in 8 of 10 cases; training asks for lower ones "
        "where a box lies less well.",
        alt=f"Precision by score; they differ by {error:.1%} on average.",
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


def scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the tables that versions are compared by."""
    numbers, threshold, made = numbers_of(study), study.threshold, study.matches
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
            [size, f"{edges[place]}–{edges[place + 1]}", f"{numbers[f'map_{size}']:.1%}"]
            for place, size in enumerate(SIZES)
            if f"map_{size}" in numbers
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
