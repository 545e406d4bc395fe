"""What the parts of a detector's evaluation share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import PipelineError
from pipeline.prepared import SplitName
from pipeline.settings import Evaluate
from pipeline.tasks.object_detection.boxes.read import Boxes, Image, Split, read
from pipeline.tasks.object_detection.data import inputs
from pipeline.tasks.object_detection.evaluation import matches
from pipeline.tasks.object_detection.evaluation.matches import Matches
from pipeline.tasks.object_detection.evaluation.metrics import Precision, average_precision
from pipeline.tasks.object_detection.model import Output, decode
from pipeline.tasks.object_detection.settings import Parts
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

SIZES = ("small", "medium", "large")


@dataclass
class Study:
    """What the parts share.

    Attributes:
        net: the trained network, on the hardware's device.
        settings: of the stage.
        hardware: what it computes on.
        curve: rows of the learning curve's table.
        sizes: see `Facts`.
        train, test: the splits.
    """

    net: Net
    settings: Evaluate
    hardware: Hardware
    curve: Sequence[Mapping[str, str]]
    sizes: Sequence[float]
    train: Split
    test: Split

    @property
    def parts(self) -> Parts:
        """Switches and sizes."""
        return self.settings.parts

    @property
    def classes(self) -> list[str]:
        """Their names."""
        return self.net.facts.classes

    @property
    def name(self) -> str:
        """What figures call the model."""
        return self.settings.model

    @cached_property
    def found(self) -> list[Boxes]:
        """What the network finds in each test image."""
        return self.detect(self.test.images)

    @cached_property
    def precision(self) -> Precision:
        """Of the test split."""
        return self.judge(self.found, self.test)

    @cached_property
    def matches(self) -> Matches:
        """Of the test split."""
        return matches.match(self.found, self.test.boxes, self.test.ignored)

    @property
    def threshold(self) -> float:
        """The score from which on the network's boxes are answers."""
        return self.net.module.get_buffer("threshold").item()

    def detect(self, images: Sequence[Image]) -> list[Boxes]:
        """The boxes found in images."""
        return [boxes for output in self.outputs(images) for boxes in decode(output)]

    def outputs(self, images: Sequence[Image]) -> list[Output]:
        """What the network says of images, a batch at a time."""
        size, found = self.settings.batch_size, []
        for start in range(0, len(images), size):
            batch = inputs(list(images[start : start + size]), self.net)
            batch = {name: value.to(self.hardware.device) for name, value in batch.items()}
            with torch.inference_mode(), self.hardware.autocast():
                found.append(self.net.module(**batch))
        return found

    def judge(self, found: Sequence[Boxes], split: Split) -> Precision:
        """How good boxes are."""
        return average_precision(found, split.boxes, len(self.classes), self.sizes, split.ignored)


def open_study(
    net: Net,
    settings: Any,
    hardware: Hardware,
    curve: Sequence[Mapping[str, str]],
    splits: Sequence[SplitName],
) -> Study:
    """A trained network and splits of its data set, as the stage's settings name them.

    Raises:
        PipelineError: the data set is missing or damaged, or has other classes than the network.
    """
    found = {split: read(Path(settings.data), split) for split in splits}
    card = found["test"][0]
    if card.facts.classes != net.facts.classes:
        raise PipelineError(
            f"{settings.weights} knows the classes {', '.join(net.facts.classes)}, {settings.data} "
            f"has {', '.join(card.facts.classes)}; train the model on this data first"
        )
    net.module.to(hardware.device)
    net.module.eval()
    train = found["train"][1] if "train" in found else Split([], [])
    return Study(net, settings, hardware, curve, card.facts.sizes, train, found["test"][1])


def numbers_of(study: Study) -> dict[str, float]:
    """The mean average precisions, and the interval of the headline."""
    found = study.precision
    low, high = matches.interval(study.matches, found.map, study.settings.seed)
    numbers = {"map": found.map, "map_low": low, "map_high": high, "map_50": found.map_50,
               "map_75": found.map_75, "recall_mean": found.recall}  # fmt: skip
    numbers |= {f"map_{name}": value for name, value in zip(SIZES, found.by_size, strict=True)}
    by_class = zip(study.classes, found.by_class, strict=True)
    numbers |= {f"map/{name}": value for name, value in by_class}
    known = {name: float(value) for name, value in numbers.items() if not np.isnan(value)}
    return known | {"examples": len(study.test.images)}
