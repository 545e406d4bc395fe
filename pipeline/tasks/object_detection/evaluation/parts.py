"""What evaluation measures and draws of the boxes that were found."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.calibration import calibration_error, reliability
from pipeline.evaluation.learning import learning
from pipeline.figures.curves import reliability_diagram
from pipeline.figures.matrices import confusion_matrix
from pipeline.figures.page import Page
from pipeline.tasks.object_detection.boxes import pictures
from pipeline.tasks.object_detection.evaluation import figures, matches
from pipeline.tasks.object_detection.evaluation.metrics import coco_results
from pipeline.tasks.object_detection.evaluation.study import SIZES, Study, numbers_of
from pipeline.tasks.object_detection.settings import ABOUT, TTFNet

DRAWN = 8
BINS = 10


def learnt(page: Page, study: Study) -> None:
    """Loss, precision and learning rate by epoch."""
    unit = "focal + GIoU" if isinstance(study.net.settings, TTFNet) else "torchvision's"
    learning(page, study.curve, study.name, ABOUT, unit)


def answers(page: Page, study: Study) -> None:
    """The first test images, and the worst."""
    test, threshold = study.test, study.threshold
    shown = [boxes.where(boxes.scores >= threshold) for boxes in study.found]
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
        "diagonal a score of 0.8 would be right in 8 of 10 cases.",
        alt=f"Precision by score; they differ by {error:.1%} on average.",
    )


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
