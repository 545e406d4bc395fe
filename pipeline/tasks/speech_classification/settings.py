"""Spoken words with a label each: names, settings, facts."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.classification.settings import ClassFacts, TrainClassifier
from pipeline.classification.settings import Parts as Parts
from pipeline.settings import Fraction, Input, Settings
from pipeline.settings import Source as AnySource
from pipeline.task import About

ABOUT = About(
    data="audio",
    model="rnn",
    stage="train_rnn",
    title="RNN",
    registered="audio-classifier",
    headline="accuracy",
    unit="share",
    watched=("accuracy", "macro_f1", "loss", "ece", "worst_slice/accuracy"),
    packages=("scipy",),
)


class Source(AnySource):
    """Spoken digits, synthesised with espeak-ng, or a folder of clips."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the voices, or without `speaker` of the clips, in the test split."""
    kind: Literal["espeak", "folder"]
    """`espeak` synthesises; `folder` reads one folder of WAV files per class."""
    sample_rate: Literal[8000, 16000]
    """Hz; clips of another rate are resampled."""
    clips: Annotated[int, Field(ge=10)] | None
    """How many clips to synthesise; their voices, speeds and pitches are drawn from the seed."""
    folder: Annotated[str | None, Input()]
    """Of `folder`."""
    speaker: str | None = "^([^_/]+)_"
    """Of `folder`: a regular expression whose one group finds the speaker in a file's path below
    the folder of its class, such as `^([^/]+)/` where each speaker has a folder there; null where
    nothing tells: the splits are then drawn at random, and a voice may be in several."""


class Facts(ClassFacts):
    """What has to be known of the clips."""

    sample_rate: PositiveInt
    """Hz."""


class Model(Settings):
    """Bidirectional GRU or LSTM over log-mel features, mean over time, linear head."""

    cell: Literal["gru", "lstm"]
    mels: PositiveInt
    """Mel bands."""
    stride: PositiveInt
    """Feature frames (10 ms each) per step of the recurrence."""
    hidden: PositiveInt
    """Units per direction."""
    layers: PositiveInt
    dropout: Fraction


class Train(TrainClassifier):
    """The settings of `stages.train_rnn`."""

    rnn: Model
