"""What the parts of a classifier's evaluation share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data.examples import Examples, read_examples, sample_rows
from pipeline.classification.evaluation.metrics import probabilities
from pipeline.classification.evaluation.subject import Kind, Subject
from pipeline.classification.settings import Parts
from pipeline.errors import PipelineError
from pipeline.evaluation.features import untrained
from pipeline.evaluation.intervals import Floats, Integers
from pipeline.prepared import SPLITS, read_card
from pipeline.settings import Evaluate, Repeat
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

Features = dict[str, NDArray[np.float32]]


class NetworkFeatures(NamedTuple):
    """Features of the same examples in the trained network and in the untrained control.

    Of each network those of the training examples, then those of the test examples.
    """

    train: Examples
    test: Examples
    trained: list[Features]
    control: list[Features]


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
    curve: Sequence[Mapping[str, str]]
    control: NDArray[np.bool_] | None = None

    @cached_property
    def on_validation(self) -> NDArray[np.float32]:
        """The model's logits on the validation split, float32 [n, classes]."""
        return self.subject.logits(self.validation.raw)

    @cached_property
    def on_test(self) -> NDArray[np.float32]:
        """The model's logits on the test split, float32 [n, classes]."""
        return self.subject.logits(self.test.raw)

    @cached_property
    def chances(self) -> Floats:
        """The probability of each class for each test example, float64 [n, classes]."""
        return probabilities(self.on_test)

    @cached_property
    def guesses(self) -> Integers:
        """The likeliest class of each test example, int64 [n]."""
        return self.chances.argmax(axis=1).astype(np.int64)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which test examples the model gets right, bool [n]."""
        return self.guesses == self.test.labels

    @cached_property
    def rows(self) -> Integers:
        """The test examples that are looked at in depth."""
        return sample_rows(len(self.test), self.parts.probe_test, self.seed)

    @cached_property
    def features(self) -> NetworkFeatures:
        """Features of the trained and of the untrained network, one pass over each split."""
        some = sample_rows(len(self.train), self.parts.probe_train, self.seed)
        splits = self.train.take(some), self.test.take(self.rows)
        networks = self.subject.model, untrained(self.subject.model, self.seed + 1)
        trained, control = (
            [self.subject.features(part.raw, model=model) for part in splits] for model in networks
        )
        return NetworkFeatures(*splits, trained, control)


def open_study(
    kind: Kind, net: Net, settings: Evaluate, hardware: Hardware, curve: Sequence[Mapping[str, str]]
) -> Study:
    """A trained model and its data set, as the stage's settings name them.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than the model.
    """
    subject = open_subject(kind, net, settings, hardware)
    train, validation, test = (
        read_examples(Path(settings.data), split, net.task.name, kind.column, kind.read)
        for split in SPLITS
    )
    return Study(
        subject=subject,
        train=train,
        validation=validation,
        test=test,
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
    return Subject(net, kind, hardware.device, settings.batch_size, hardware.autocast)
