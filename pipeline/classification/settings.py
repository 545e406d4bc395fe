"""What the settings of all classifiers have."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.settings import Fraction, Settings, Train, Training


class ClassFacts(Settings):
    """What has to be known of a data set to build a classifier for it."""

    classes: Annotated[list[str], Field(min_length=2)]
    """Class names; a label is an index into them."""


class ClassifierTraining(Training):
    """The loop, with cross-entropy."""

    label_smoothing: Fraction
    monitor: Literal["accuracy", "loss"]
    """Validation score that decides the best checkpoint."""


class TrainClassifier(Train):
    """What the training stages of classifiers share."""

    training: ClassifierTraining


class Parts(Settings):
    """The parts of evaluation beyond the test metrics, each on its own switch."""

    probes: bool
    """Linear probes by depth, of the trained and of the untrained network."""
    similarity: bool
    """Linear CKA between the stages of the network."""
    pictures: bool
    """Filters, maps, patches; words and attention; evidence over time."""
    baselines: bool
    """Majority class and logistic regression on plain features."""
    calibration: bool
    """Temperature scaling and the reliability diagram."""
    slices: bool
    robustness: bool
    suspects: bool
    """Held-out examples whose label may be wrong."""
    exploration: bool
    """The interactive page: confusion, a map of the test examples, calibration."""
    probe_train: Annotated[int, Field(gt=1)]
    """Training examples a probe learns from, at most."""
    probe_test: Annotated[int, Field(gt=1)]
    """Test examples of probes, of similarity and of the interactive page's map, at most."""
    pictured: PositiveInt
    """Test images that the most exciting patches are sought in, at most."""
    damaged: PositiveInt
    """Test examples of the robustness curves, at most."""
    suspected: PositiveInt
    """Length of the list of label suspects, at most."""
