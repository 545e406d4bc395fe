"""The measured parts of a model's page: calibration, slices, robustness, baselines, suspects."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.evaluation import baselines, metrics
from pipeline.classification.evaluation.groups import groups
from pipeline.classification.evaluation.metrics import probabilities
from pipeline.classification.evaluation.predictions import Predictions
from pipeline.classification.evaluation.subject import Subject
from pipeline.classification.evaluation.suspects import suspects
from pipeline.classification.examples import Examples
from pipeline.evaluation.intervals import bootstrap, share
from pipeline.evaluation.page import Page
from pipeline.evaluation.slices import lowest, slices, worst
from pipeline.figures import curves, matrices
from pipeline.figures.sheets import Caption
from pipeline.figures.style import shorten

MOST_SLICES = 120
"""Slices that a figure shows: each is a line of text."""


def confusion(page: Page, test: Predictions, classes: list[str], name: str) -> None:
    """The confusion matrix, and the two classes that are mixed up most."""
    guesses = test.logits.argmax(axis=1).astype(np.int64)
    matrix = metrics.confusion(guesses, test.labels, len(classes))
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
        matrices.confusion_matrix(matrix, classes, f"{name}: what is taken for what"),
        title="Confusion matrix",
        text=f"Each row is a true class, each column an answer; the diagonal is right. {most}",
        alt=f"Confusion matrix of {len(classes)} classes with {missed} of {len(guesses)} examples "
        f"off the diagonal. {most}",
    )


def calibration(page: Page, test: Predictions, validation: Predictions, name: str) -> None:
    """Reliability before and after temperature scaling, fitted on validation."""
    heat = metrics.temperature(validation.logits, validation.labels)
    chances = probabilities(test.logits), probabilities(test.logits, heat)
    errors = [metrics.calibration_error(part, test.labels) for part in chances]
    tables = [metrics.reliability(part, test.labels) for part in chances]
    loss = metrics.log_loss(test.logits, test.labels, heat)
    page.numbers |= {"temperature": heat, "ece_scaled": errors[1], "loss_scaled": loss}
    gap = float(chances[0].max(axis=1).mean() - (chances[0].argmax(axis=1) == test.labels).mean())
    tendency = "more" if gap > 0 else "less"
    page.figure(
        "reliability",
        curves.reliability_diagram(tables[0], tables[1], errors, f"{name}: calibration"),
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


def by_slice(
    page: Page, subject: Subject, test: Examples, right: NDArray[np.bool_], name: str
) -> None:
    """Accuracy by class, size or length, and the split's own columns; the worst is named."""
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
    shown = lowest(found, MOST_SLICES)
    rows = [(part.kind, part.name, part.accuracy, part.low, part.high) for part in shown]
    left_out = f" Of {len(found)} slices the {len(shown)} worst are shown."
    page.figure(
        "slices",
        curves.intervals(rows, whole, f"{name}: accuracy by part of the test split", marked=True),
        title="Where it fails",
        text=f"The worst slice is {bad.kind} “{bad.name}”: {bad.accuracy:.1%} of {bad.examples} "
        f"examples (95% interval {bad.low:.1%} to {bad.high:.1%}; all: {whole:.1%}). The overall "
        f"accuracy {outside} inside that interval.{left_out if len(shown) < len(found) else ''}",
        alt=f"Accuracy with interval for {len(found)} slices. The worst is {bad.kind} {bad.name} "
        f"with {bad.accuracy:.1%}.",
    )


def robustness(
    page: Page,
    subject: Subject,
    sample: Examples,
    right: NDArray[np.bool_],
    seed: int,
    name: str,
) -> None:
    """Accuracy against the severity of each kind of damage.

    `right` says which of the examples the model gets right undamaged, bool [n].
    """
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
            f"{name}: accuracy under damage to the input",
        ),
        title="How much damage it bears",
        text=f"{summary} Bands are 95% intervals over {len(sample)} test examples, the dotted "
        "line is chance.",
        alt=f"Accuracy against severity for {', '.join(drawn)}. {summary}",
    )


def against_baselines(
    page: Page,
    found: Sequence[baselines.Baseline],
    right: NDArray[np.bool_],
    seed: int,
    name: str,
) -> None:
    """What simple rules reach on the same examples, and what the model gains over each."""
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


def label_suspects(
    page: Page,
    splits: dict[str, tuple[Predictions, Examples]],
    subject: Subject,
    most: int,
) -> list[tuple[str, int, Caption]]:
    """Write the list of doubtful labels of held-out splits; returns (split, row, caption).

    The text of a sentence is in the table, so that a person can go through it.
    """
    classes = subject.classes
    found = [
        (split, suspect)
        for split, (predicted, _) in splits.items()
        for suspect in suspects(probabilities(predicted.logits), predicted.labels, most)
    ]
    found.sort(key=lambda pair: (-pair[1].margin, pair[0], pair[1].row))
    found = found[:most]
    rows = [
        {
            "split": split,
            "row": one.row,
            "label": classes[one.label],
            "prediction": classes[one.prediction],
            "margin": one.margin,
            "text": subject.kind.text(splits[split][1].raw[one.row]),
        }
        for split, one in found
    ]
    page.table("suspects", rows, ["split", "row", "label", "prediction", "margin", "text"])
    return [
        (
            split,
            one.row,
            Caption(
                f"{split} {one.row}: {shorten(classes[one.label], 12)}",
                f"rather {shorten(classes[one.prediction], 12)}?",
            ),
        )
        for split, one in found
    ]
