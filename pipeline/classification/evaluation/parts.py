"""The parts of a classifier's page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.classification.data.examples import sample_rows
from pipeline.classification.evaluation import baselines, depth, metrics
from pipeline.classification.evaluation.exploration import exploration
from pipeline.classification.evaluation.groups import groups
from pipeline.classification.evaluation.metrics import probabilities
from pipeline.classification.evaluation.study import Study
from pipeline.classification.evaluation.suspects import confident_mistakes, suspects
from pipeline.evaluation.intervals import bootstrap, share
from pipeline.evaluation.learning import learning
from pipeline.evaluation.probes import fit_and_predict
from pipeline.evaluation.slices import slices, worst
from pipeline.figures import curves, matrices, sheets
from pipeline.figures.page import Page
from pipeline.figures.style import shorten
from pipeline.files import new_file

MOST_SLICES = 120
"""Slices that a figure shows: each is a line of text."""
SUSPECTS = 12
"""Examples on the sheet of doubtful labels."""


def confusion(page: Page, study: Study) -> None:
    """The confusion matrix, and the two classes that are mixed up most."""
    guesses, classes = study.guesses, study.subject.classes
    matrix = metrics.confusion(guesses, study.test.labels, len(classes))
    others = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    actual, guess = np.unravel_index(int(others.argmax()), others.shape)
    missed = int(others.sum())
    most = (
        f"The most frequent mix-up, {others[actual, guess]}×: {classes[actual]} taken for "
        f"{classes[guess]}."
        if missed
        else "Nothing is mixed up."
    )
    page.figure(
        "confusion",
        matrices.confusion_matrix(matrix, classes, f"{study.name}: what is taken for what"),
        title="Confusion matrix",
        text=f"Each row is a true class, each column an answer; the diagonal is right. {most}",
        alt=f"Confusion matrix of {len(classes)} classes with {missed} of {len(guesses)} examples "
        f"off the diagonal. {most}",
    )


def calibration(page: Page, study: Study) -> None:
    """Reliability before and after temperature scaling, fitted on validation."""
    logits, labels = study.on_test, study.test.labels
    heat = metrics.temperature(study.on_validation, study.validation.labels)
    chances = study.chances, probabilities(logits, heat)
    errors = [metrics.calibration_error(part, labels) for part in chances]
    tables = [metrics.reliability(part, labels) for part in chances]
    loss = metrics.log_loss(logits, labels, heat)
    page.numbers |= {"temperature": heat, "ece_scaled": errors[1], "loss_scaled": loss}
    gap = float(study.chances.max(axis=1).mean() - study.right.mean())
    tendency = "more" if gap > 0 else "less"
    page.figure(
        "reliability",
        curves.reliability_diagram(tables[0], tables[1], errors, f"{study.name}: calibration"),
        title="Is its confidence justified?",
        text=f"On average the model is {abs(gap):.1%} {tendency} confident than it is right. "
        f"Dividing the logits by {heat:.2f}, the temperature fitted on the validation split, takes "
        f"the expected calibration error on the test split from {errors[0]:.1%} to "
        f"{errors[1]:.1%}. Larger marks stand for more examples; bins of fewer than five are not "
        "drawn.",
        alt=f"Accuracy against confidence with the diagonal of perfect calibration; expected "
        f"calibration error {errors[0]:.1%}, after temperature scaling {errors[1]:.1%}. Below it a "
        "histogram of the confidence.",
    )


def by_slice(page: Page, study: Study) -> None:
    """Accuracy by class, size or length, and the split's own columns; the worst is named."""
    subject, test, right = study.subject, study.test, study.right
    sizes = subject.kind.sizes(test.raw, subject.net.facts)
    cut = groups(test, subject.classes, sizes)
    found = slices(right, {kind: part.names for kind, part in cut.items()})
    bad = worst(found)
    if bad is None:
        return
    found.sort(key=lambda part: (list(cut).index(part.kind), cut[part.kind].order.index(part.name)))
    page.table("slices", (part._asdict() for part in found), list(found[0]._fields))
    page.numbers["worst_slice/accuracy"] = bad.accuracy
    page.columns["Worst slice"] = f"{bad.kind} “{bad.name}”: {bad.accuracy:.1%}"
    whole = float(right.mean())
    outside = "lies" if bad.low <= whole <= bad.high else "does not lie"
    ranked = sorted(range(len(found)), key=lambda place: found[place].accuracy)
    shown = [found[place] for place in sorted(ranked[:MOST_SLICES])]
    rows = [(part.kind, part.name, part.accuracy, part.low, part.high) for part in shown]
    left_out = f" Of {len(found)} slices the {len(shown)} worst are shown."
    page.figure(
        "slices",
        curves.intervals(
            rows, whole, f"{study.name}: accuracy by part of the test split", marked=True
        ),
        title="Where it fails",
        text=f"The worst slice is {bad.kind} “{bad.name}”: {bad.accuracy:.1%} of {bad.examples} "
        f"examples (95% interval {bad.low:.1%} to {bad.high:.1%}; all: {whole:.1%}). The overall "
        f"accuracy {outside} inside that interval.{left_out if len(shown) < len(found) else ''}",
        alt=f"Accuracy with interval for {len(found)} slices. The worst is {bad.kind} {bad.name} "
        f"with {bad.accuracy:.1%}.",
    )


def robustness(page: Page, study: Study) -> None:
    """Accuracy against the severity of each kind of damage."""
    subject, seed = study.subject, study.seed
    some = sample_rows(len(study.test), study.parts.damaged, seed)
    sample, right = study.test.take(some), study.right[some]
    rows, drawn = [], {}
    kinds = subject.kind.corruptions
    for kind in kinds:
        points = []
        for number, severity in enumerate(kind.severities):
            hits = right
            if number:
                damaged = kind.apply(sample.raw, severity, seed)
                hits = subject.logits(damaged).argmax(axis=1) == sample.labels
            accuracy, interval = share(hits)
            points.append((severity, accuracy, *interval))
        drawn[kind.name] = points
        page.numbers[f"robustness/{kind.name}"] = float(np.mean([p[1] for p in points[1:]]))
        rows += [
            {"kind": kind.name, "severity": s, "accuracy": a, "low": low, "high": high}
            for s, a, low, high in points
        ]
    page.table("robustness", rows, ["kind", "severity", "accuracy", "low", "high"])
    falls = {kind: points[0][1] - min(p[1] for p in points) for kind, points in drawn.items()}
    hardest = max(falls, key=lambda kind: falls[kind])
    summary = (
        f"What hurts most is {hardest}: from {drawn[hardest][0][1]:.1%} down to "
        f"{min(p[1] for p in drawn[hardest]):.1%} at its worst."
    )
    page.figure(
        "robustness",
        curves.robustness_curves(
            drawn,
            {kind.name: kind.unit for kind in kinds},
            1 / len(subject.classes),
            f"{study.name}: accuracy under damage to the input",
        ),
        title="How much damage it bears",
        text=f"{summary} Bands are 95% intervals over {len(sample)} test examples, the dotted "
        "line is chance.",
        alt=f"Accuracy against severity for {', '.join(drawn)}. {summary}",
    )


def against_baselines(page: Page, study: Study) -> None:
    """What simple rules reach on the same examples, and what the model gains over each."""
    subject, right, seed, name = study.subject, study.right, study.seed, study.name
    learnt, labels = study.train.labels, study.test.labels
    train, test = subject.kind.features(subject, study.train.raw, study.test.raw)
    hits = {
        "majority class": labels == np.bincount(learnt).argmax(),
        subject.kind.plain: labels == fit_and_predict(train, learnt, test),
    }
    found = [baselines.baseline(one, part, right, seed) for one, part in hits.items()]
    if study.control is not None:
        beside = right[study.rows]
        rule = "untrained network + probe"
        found.append(baselines.baseline(rule, study.control, beside, seed))
    page.table("baselines", (one._asdict() for one in found), list(found[0]._fields))
    for one in found:
        page.numbers[f"baseline/{one.name}/accuracy"] = one.accuracy
        page.numbers[f"baseline/{one.name}/gain"] = one.gain
    low, high = bootstrap(right.astype(np.float64), seed)
    whole = float(right.mean())
    rows = [("baselines", one.name, one.accuracy, one.low, one.high) for one in found]
    best = max(found, key=lambda one: one.accuracy)
    sure = "is no chance" if best.p_value < 0.05 else "may be chance"
    page.figure(
        "baselines",
        curves.intervals(
            [*rows, ("this model", name, whole, low, high)], whole, f"{name}: against baselines"
        ),
        title="What deep learning bought",
        text=f"The best simple rule, {best.name}, gets {best.accuracy:.1%}; the model gains "
        f"{100 * best.gain:+.1f} points over it ({100 * best.gain_low:+.1f} to "
        f"{100 * best.gain_high:+.1f}). On the same test examples that {sure} "
        f"(exact McNemar test, p = {best.p_value:.2g}).",
        alt=f"Accuracy of {len(found)} baselines and of the model with intervals; the model has "
        f"{whole:.1%}, the best baseline {best.accuracy:.1%}.",
    )


def label_suspects(page: Page, study: Study) -> None:
    """Held-out examples with a doubtful label, as a table with their texts and as a sheet."""
    subject, classes, most = study.subject, study.subject.classes, study.parts.suspected
    splits = {
        "test": (study.on_test, study.test),
        "validation": (study.on_validation, study.validation),
    }
    found = [
        (split, suspect)
        for split, (logits, examples) in splits.items()
        for suspect in suspects(probabilities(logits), examples.labels, most)
    ]
    found.sort(key=lambda pair: (-pair[1].margin, pair[0], pair[1].row))
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "row": one.row,
            "label": classes[one.label],
            "prediction": classes[one.prediction],
            "margin": one.margin,
            "text": subject.kind.text(splits[split][1].raw[one.row]),
        }
        for split, one in found[:most]
    ]
    page.table("suspects", rows, ["split", "row", "label", "prediction", "margin", "text"])
    raw = [splits[row["split"]][1].raw[row["row"]] for row in rows[:SUSPECTS]]
    captions = [
        sheets.Caption(
            f"{row['split']} {row['row']}: {shorten(row['label'], 12)}",
            f"rather {shorten(row['prediction'], 12)}?",
        )
        for row in rows[:SUSPECTS]
    ]
    page.figure(
        "suspects",
        subject.kind.sheet(subject, raw, captions, f"{study.name}: labels to look at"),
        title="Labels that may be wrong",
        text="The held-out examples whose label the model contradicts most firmly, with their "
        "split and row; suspects.csv lists more. Some are plain mistakes of the model: a person "
        "decides.",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no suspects",
    )


def mistakes(page: Page, study: Study) -> None:
    """A sheet of the wrong answers that the model was surest of."""
    subject, most, name = study.subject, study.mistakes, study.name
    rows = confident_mistakes(study.chances, study.test.labels, most)
    captions = [
        sheets.Caption(
            f"row {row}: {shorten(subject.classes[study.test.labels[row]], 12)}",
            f"read as {shorten(subject.classes[guess], 12)}, {study.chances[row, guess]:.0%}",
        )
        for row, guess in zip(rows, study.guesses[rows], strict=True)
    ]
    page.figure(
        "mistakes",
        subject.kind.sheet(
            subject, study.test.take(rows).raw, captions, f"{name}: its most confident mistakes"
        ),
        title="The most confident mistakes",
        text=f"Wrong answers to test examples: {(~study.right).sum()} of {len(study.right)}; shown "
        f"are those with the most confidence, at most {most}. Ask of each: is the label wrong, is "
        "it hard for you too, or is there a pattern to mend?",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no mistakes",
    )


def scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the tables that they can be computed from."""
    labels, classes = study.test.labels, study.subject.classes
    _write_predictions(page.folder / "predictions.parquet", study)
    # a row for each example: what DVC's template of confusion matrices counts
    pairs = zip(labels, study.guesses, strict=True)
    answers = ({"actual": classes[actual], "predicted": classes[guess]} for actual, guess in pairs)
    page.table("confusion", answers, ["actual", "predicted"])
    table = metrics.reliability(study.chances, labels)
    bins = (dict(zip(table._fields, row, strict=True)) for row in zip(*table, strict=True))
    page.table("reliability", bins, list(table._fields))
    numbers = metrics.scores(study.on_test, labels, classes, study.seed)
    page.numbers |= numbers
    page.facts |= {
        "macro F1": f"{numbers['macro_f1']:.1%}",
        "loss": f"{numbers['loss']:.4f} nats",
    }
    page.show(
        "By class",
        ["Class", "Precision", "Recall", "F1"],
        (
            [name, *(f"{numbers[f'{one}/{name}']:.1%}" for one in ("precision", "recall", "f1"))]
            for name in classes
        ),
    )
    scaled = page.numbers.get("ece_scaled")  # of the part `calibration`
    page.columns["Calibration error"] = f"{numbers['ece']:.1%}" + (
        f" → {scaled:.1%}" if scaled is not None else ""
    )
    page.notes["Calibration error"] = (
        "as trained → after temperature scaling fitted on the validation split"
    )


def _write_predictions(path: Path, study: Study) -> None:
    """Write one row per example: score, label, prediction, confidence, probabilities, in order.

    `score` is 1 where the model is right, else 0. `label` and `prediction` are int64 indices into
    the class names, which are in the Parquet schema's metadata under `classes`; the other columns
    are float32.
    """
    chances = study.chances.astype(np.float32)
    columns = {
        "score": study.right.astype(np.float32),
        "label": study.test.labels,
        "prediction": study.guesses,
        "confidence": chances.max(axis=1),
        "probabilities": pa.FixedSizeListArray.from_arrays(
            pa.array(chances.ravel()), chances.shape[1]
        ),
    }
    classes = json.dumps(study.subject.classes, ensure_ascii=False)
    table = pa.table(columns, metadata={"classes": classes})
    with new_file(path) as temporary:
        pq.write_table(table, temporary)


PARTS: dict[str, Callable[[Page, Study], None]] = {
    "learning": lambda page, study: learning(
        page, study.curve, study.name, study.subject.net.task.about, "nats"
    ),
    "confusion": confusion,
    "mistakes": mistakes,
    "probes": depth.probes,
    "similarity": depth.similarity,
    "pictures": lambda page, study: study.subject.kind.pictures(page, study),
    "baselines": against_baselines,
    "calibration": calibration,
    "slices": by_slice,
    "robustness": robustness,
    "suspects": label_suspects,
    "exploration": exploration,
    "scores": scores,
}
"""In the order in which they are measured and shown."""
