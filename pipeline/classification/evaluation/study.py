"""All of evaluation for one classifier: its parts, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.evaluation import baselines, depth, measures
from pipeline.classification.evaluation.exploration import exploration
from pipeline.classification.evaluation.metrics import probabilities, reliability, scores
from pipeline.classification.evaluation.predictions import Predictions, write_predictions
from pipeline.classification.evaluation.subject import Kind, Subject
from pipeline.classification.evaluation.suspects import confident_mistakes
from pipeline.classification.examples import Examples, read_examples, sample_rows
from pipeline.classification.settings import Parts
from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import Floats, Integers
from pipeline.evaluation.learning import learning
from pipeline.evaluation.page import Page
from pipeline.evaluation.tables import write_csv
from pipeline.figures import sheets
from pipeline.hardware import Hardware
from pipeline.net import Net
from pipeline.prepared import SplitName, read_card
from pipeline.settings import Evaluate, Repeat


@dataclass
class Study:
    """What the parts share.

    Attributes:
        subject: the trained model.
        train, validation, test: the splits as raw examples.
        parts: switches and sizes.
        name: what figures call the model.
        seed: of every draw.
        mistakes: how many the sheet shows, at most.
        curve: rows of the learning curve's table.
        control: which of the examples `rows` a probe of the untrained network gets right, once the
            probes were measured.
    """

    subject: Subject
    train: Examples
    validation: Examples
    test: Examples
    parts: Parts
    name: str
    seed: int
    mistakes: int
    curve: Sequence[Mapping[str, str]] = ()
    control: NDArray[np.bool_] | None = None

    @cached_property
    def on_validation(self) -> Predictions:
        """The model's predictions on the validation split."""
        return self._predict(self.validation)

    @cached_property
    def on_test(self) -> Predictions:
        """The model's predictions on the test split."""
        return self._predict(self.test)

    @cached_property
    def guesses(self) -> Integers:
        """The likeliest class of each test example, int64 [n]."""
        return probabilities(self.on_test.logits).argmax(axis=1).astype(np.int64)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which test examples the model gets right, bool [n]."""
        return self.guesses == self.test.labels

    @cached_property
    def rows(self) -> Integers:
        """The test examples that are looked at in depth."""
        return sample_rows(len(self.test), self.parts.probe_test, self.seed)

    @cached_property
    def depths(self) -> depth.Depths:
        """Features of the trained and of the untrained network."""
        train = self.train.sample(self.parts.probe_train, self.seed)
        return depth.collect(self.subject, train, self.test.take(self.rows), self.seed)

    def _predict(self, split: Examples) -> Predictions:
        return Predictions(self.subject.logits(split.raw), split.labels)


def open_study(
    kind: Kind, net: Net, settings: Evaluate, hardware: Hardware, curve: Sequence[Mapping[str, str]]
) -> Study:
    """A trained model and its data set, as the stage's settings name them.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than the model.
    """
    data = Path(settings.data)
    subject = open_subject(kind, net, settings, hardware)
    return Study(
        subject,
        train=_examples(data, "train", subject),
        validation=_examples(data, "validation", subject),
        test=_examples(data, "test", subject),
        parts=settings.parts,
        name=settings.model,
        seed=settings.seed,
        mistakes=settings.mistakes,
        curve=curve,
    )


def open_subject(kind: Kind, net: Net, settings: Evaluate | Repeat, hardware: Hardware) -> Subject:
    """A trained model on the hardware, to be shown the data set that the settings name.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than the model.
    """
    card, ours = read_card(Path(settings.data), net.task.name), net.facts.classes
    classes = card.facts.classes
    if ours != classes:
        raise PipelineError(
            f"{settings.weights} knows the classes {', '.join(ours)}, {settings.data} has "
            f"{', '.join(classes)}; train the model on this data first"
        )
    net.module.to(hardware.device)
    return Subject(net, kind, hardware.device, settings.batch_size, hardware.accelerator.autocast)


def _examples(data: Path, split: SplitName, subject: Subject) -> Examples:
    return read_examples(data, split, subject.net.task.name, subject.kind.column, subject.kind.read)


def _scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the tables that they can be computed from."""
    test, classes = study.on_test, study.subject.classes
    write_predictions(page.folder / "predictions.parquet", test, classes)
    _write_confusion(page.folder / "confusion.csv", study.guesses, test.labels, classes)
    _write_reliability(page.folder / "reliability.csv", probabilities(test.logits), test.labels)
    numbers = scores(test.logits, test.labels, classes, study.seed)
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


def _learning(page: Page, study: Study) -> None:
    learning(page, study.curve, study.name, study.subject.net.task.about, "nats")


def _mistakes(page: Page, study: Study) -> None:
    subject, most, name = study.subject, study.mistakes, study.name
    chances = probabilities(study.on_test.logits)
    rows = confident_mistakes(chances, study.on_test.labels, most)
    captions = sheets.mistake_captions(
        rows.tolist(), study.on_test.labels, chances, subject.classes
    )
    wrong = int((chances.argmax(axis=1) != study.on_test.labels).sum())
    page.figure(
        "mistakes",
        subject.kind.sheet(
            subject, study.test.take(rows).raw, captions, f"{name}: its most confident mistakes"
        ),
        title="The most confident mistakes",
        text=f"Wrong answers to test examples: {wrong} of {len(chances)}; shown are those with the "
        f"most confidence, at most {most}. Ask of each: is the label wrong, is it hard for you "
        "too, or is there a pattern to mend?",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no mistakes",
    )


def _suspects(page: Page, study: Study) -> None:
    subject, name = study.subject, study.name
    splits = {
        "test": (study.on_test, study.test),
        "validation": (study.on_validation, study.validation),
    }
    found = measures.label_suspects(page, splits, subject, study.parts.suspected)
    shown = found[:12]
    raw = [splits[split][1].raw[row] for split, row, _ in shown]
    captions = [caption for _, _, caption in shown]
    page.figure(
        "suspects",
        subject.kind.sheet(subject, raw, captions, f"{name}: labels to look at"),
        title="Labels that may be wrong",
        text="The held-out examples whose label the model contradicts most firmly, with their "
        "split and row; suspects.csv lists more. Some are plain mistakes of the model: a person "
        "decides.",
        alt="; ".join(f"{one.first}, {one.second}" for one in captions) or "no suspects",
    )


def _confusion(page: Page, study: Study) -> None:
    measures.confusion(page, study.on_test, study.subject.classes, study.name)


def _probes(page: Page, study: Study) -> None:
    study.control = depth.probes(page, study.subject, study.depths, study.seed, study.name)


def _similarity(page: Page, study: Study) -> None:
    depth.similarity(page, study.depths, study.name)


def _pictures(page: Page, study: Study) -> None:
    study.subject.kind.pictures(page, study)


def _baselines(page: Page, study: Study) -> None:
    subject, right, seed = study.subject, study.right, study.seed
    labels = study.train.labels, study.test.labels
    features = subject.kind.features(subject, study.train.raw, study.test.raw)
    hits = {
        "majority class": baselines.majority(*labels),
        subject.kind.plain: baselines.logistic(features[0], labels[0], features[1], labels[1]),
    }
    simple = [baselines.baseline(one, part, right, seed) for one, part in hits.items()]
    if study.control is not None:
        rows = study.rows
        control = baselines.baseline("untrained network + probe", study.control, right[rows], seed)
        simple.append(control)
    measures.against_baselines(page, simple, right, seed, study.name)


def _calibration(page: Page, study: Study) -> None:
    measures.calibration(page, study.on_test, study.on_validation, study.name)


def _slices(page: Page, study: Study) -> None:
    measures.by_slice(page, study.subject, study.test, study.right, study.name)


def _robustness(page: Page, study: Study) -> None:
    some = sample_rows(len(study.test), study.parts.damaged, study.seed)
    sample, right = study.test.take(some), study.right[some]
    measures.robustness(page, study.subject, sample, right, study.seed, study.name)


def _exploration(page: Page, study: Study) -> None:
    # the features, where another part has computed them
    found = study.depths if study.parts.probes or study.parts.similarity else None
    exploration(
        page,
        study.subject,
        study.test,
        study.on_test,
        study.rows,
        found,
        study.seed,
        study.name,
    )


def _write_confusion(path: Path, predicted: Integers, labels: Integers, classes: list[str]) -> None:
    """One row per example, columns actual,predicted: what DVC's confusion template counts."""
    pairs = zip(labels, predicted, strict=True)
    rows = ({"actual": classes[a], "predicted": classes[p]} for a, p in pairs)
    write_csv(path, rows, ["actual", "predicted"])


def _write_reliability(path: Path, chances: Floats, labels: Integers) -> None:
    """One row per confidence bin that holds an example."""
    table = reliability(chances, labels)
    rows = (dict(zip(table._fields, values, strict=True)) for values in zip(*table, strict=True))
    write_csv(path, rows, list(table._fields))


PARTS: dict[str, Callable[[Page, Study], None]] = {
    "learning": _learning,
    "confusion": _confusion,
    "mistakes": _mistakes,
    "probes": _probes,
    "similarity": _similarity,
    "pictures": _pictures,
    "baselines": _baselines,
    "calibration": _calibration,
    "slices": _slices,
    "robustness": _robustness,
    "suspects": _suspects,
    "exploration": _exploration,
    "scores": _scores,
}
"""In the order in which they are measured and shown."""
