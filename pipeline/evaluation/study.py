"""All of evaluation for one model, each part on its own switch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import baselines, depth, measures
from pipeline.evaluation.examples import Examples, Raw, sample_rows
from pipeline.evaluation.exploration import exploration
from pipeline.evaluation.metrics import rounded, scores
from pipeline.evaluation.page import Page
from pipeline.evaluation.pictures import pictures, spectrograms
from pipeline.evaluation.predictions import Predictions, probabilities, write_predictions
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suspects import confident_mistakes
from pipeline.evaluation.tables import write_confusion, write_reliability
from pipeline.figures import curves, sheets
from pipeline.settings import Parts


class Data(NamedTuple):
    """The splits as raw examples, and the model's predictions on the two held-out ones."""

    train: Examples
    validation: Examples
    test: Examples
    on_validation: Predictions
    on_test: Predictions


def study(
    subject: Subject,
    data: Data,
    parts: Parts,
    folder: Path,
    *,
    name: str,
    seed: int,
    mistakes: int,
    curve: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, float]:
    """Measure and draw, into `folder`; returns the numbers of `metrics/<model>.json`.

    `curve` are the rows of the learning curve's table. The same inputs give the same bytes.
    """
    test = data.on_test
    chances = probabilities(test.logits)
    guesses = chances.argmax(axis=1).astype(np.int64)
    right = guesses == test.labels
    page = Page(folder)
    write_predictions(folder / "predictions.parquet", test, subject.classes)
    write_confusion(folder / "confusion.csv", guesses, test.labels, subject.classes)
    write_reliability(folder / "reliability.csv", chances, test.labels)
    if curve:
        _learning(page, curve, name)
    measures.confusion(page, test, subject.classes, name)
    _mistakes(page, subject, data, mistakes, name)

    found = None
    rows = sample_rows(len(data.test), parts.probe_test, seed)
    control: NDArray[np.bool_] | None = None
    if parts.probes or parts.similarity:
        train = data.train.sample(parts.probe_train, seed)
        found = depth.collect(subject, train, data.test.take(rows), seed)
    if found and parts.probes:
        control = depth.probes(page, subject, found, seed, name)
    if found and parts.similarity:
        depth.similarity(page, found, name)
    if parts.pictures:
        pictures(page, subject, data.test, guesses, parts.pictured, name)
    if parts.baselines:
        simple = _baselines(subject, data, right, seed)
        if control is not None:
            simple.append(
                baselines.baseline("untrained network + probe", control, right[rows], seed)
            )
        measures.against_baselines(page, simple, right, seed, name)
    if parts.calibration:
        measures.calibration(page, test, data.on_validation, name)
    if parts.slices:
        measures.by_slice(page, subject, data.test, right, name)
    if parts.robustness:
        some = sample_rows(len(data.test), parts.damaged, seed)
        measures.robustness(page, subject, data.test.take(some), right[some], seed, name)
    if parts.suspects:
        _suspects(page, subject, data, parts.suspected, name)
    if parts.exploration:
        exploration(page, subject, data.test, test, rows, found, seed, name)
    page.close()
    return rounded(scores(test.logits, test.labels, subject.classes, seed) | page.numbers)


def _learning(page: Page, curve: Sequence[Mapping[str, str]], name: str) -> None:
    accuracies = [float(row["validation_accuracy"]) for row in curve]
    best = int(np.argmax(accuracies))
    page.figure(
        "learning_curves",
        curves.learning_curves(curve, f"{name}: learning curves"),
        title="Learning curves",
        text=f"Validation accuracy is best after epoch {curve[best]['epoch']} of {len(curve)}: "
        f"{accuracies[best]:.1%}. Training and validation loss that part company show "
        "memorising; both still falling at the end ask for more epochs.",
        alt=f"Loss, validation accuracy and learning rate over {len(curve)} epochs; best "
        f"validation accuracy {accuracies[best]:.1%}.",
    )


def _mistakes(page: Page, subject: Subject, data: Data, most: int, name: str) -> None:
    chances = probabilities(data.on_test.logits)
    rows = confident_mistakes(chances, data.on_test.labels, most)
    captions = sheets.mistake_captions(rows.tolist(), data.on_test.labels, chances, subject.classes)
    wrong = int((chances.argmax(axis=1) != data.on_test.labels).sum())
    page.figure(
        "mistakes",
        _sheet(subject, data.test.take(rows), captions, f"{name}: its most confident mistakes"),
        title="The most confident mistakes",
        text=f"Wrong answers to test examples: {wrong} of {len(chances)}; shown are those with the "
        f"most confidence, at most {most}. Ask of each: is the label wrong, is it hard for you "
        "too, or is there a pattern to mend?",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no mistakes",
    )


def _suspects(page: Page, subject: Subject, data: Data, most: int, name: str) -> None:
    splits = {
        "test": (data.on_test, data.test),
        "validation": (data.on_validation, data.validation),
    }
    found = measures.label_suspects(page, splits, subject.classes, subject.task, most)
    shown = found[:12]
    raw: Raw = [splits[split][1].raw[row] for split, row, _ in shown]
    if subject.task == "image":
        raw = np.stack(raw) if raw else data.test.raw[:0]
    examples = Examples(raw, np.zeros(len(shown), dtype=np.int64), {})
    captions = [caption for _, _, caption in shown]
    page.figure(
        "suspects",
        _sheet(subject, examples, captions, f"{name}: labels to look at"),
        title="Labels that may be wrong",
        text="The held-out examples whose label the model contradicts most firmly, with their "
        "split and row; suspects.csv lists more. Some are plain mistakes of the model: a person "
        "decides.",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no suspects",
    )


def _sheet(subject, examples, captions, title):  # type: ignore[no-untyped-def]
    if subject.task == "image":
        return sheets.image_sheet(examples.raw, captions, title)
    if subject.task == "text":
        return sheets.text_sheet(examples.raw, captions, title)
    seconds = [len(wave) / (subject.sample_rate or 1) for wave in examples.raw]
    return sheets.spectrogram_sheet(spectrograms(subject, examples.raw), seconds, captions, title)


def _baselines(
    subject: Subject, data: Data, right: NDArray[np.bool_], seed: int
) -> list[baselines.Baseline]:
    labels = data.train.labels, data.test.labels
    if subject.task == "image":
        name = "pixels + logistic regression"
        features = baselines.pixels(data.train.raw), baselines.pixels(data.test.raw)
    elif subject.task == "text":
        name = "TF-IDF + logistic regression"
        features = baselines.tfidf(data.train.raw, data.test.raw)
    else:
        name = "mean log-mel + logistic regression"
        means = [_mean_spectra(subject, part.raw) for part in (data.train, data.test)]
        features = baselines.standardise(means[0], means[1])
    hits = {
        "majority class": baselines.majority(*labels),
        name: baselines.logistic(features[0], labels[0], features[1], labels[1]),
    }
    return [baselines.baseline(one, part, right, seed) for one, part in hits.items()]


def _mean_spectra(subject: Subject, waves: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    from pipeline.evaluation.features import points

    first = points(subject.model, subject.encode(waves[:1]))[:1]
    return subject.features(waves, first)[first[0].name]
