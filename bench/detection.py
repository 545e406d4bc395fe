"""Row 15: a detector against torchvision's reference loop, and the evaluation of many boxes.

The peer is written here after torchvision's references/detection: a dataset of single images that
Pillow decodes, transforms (v2) of each image with its boxes, a dict of targets for each, a loader,
and an epoch that warms the learning rate up and looks at the loss of each step. Network, loss,
batches and kinds of changes are the pipeline's, and AdamW moves both; the peer has bf16 and the
fused kernel where it can, and as many workers as are fastest.
"""

import io
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  # isort: skip (as in a stage: sets what torch reads when imported)
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from bench.inference import train
from bench.jobs import composed, job
from bench.measure import Row, alternate, answer, at_least, at_most, main, ratios, scratch, timed
from pipeline.prepared import read_card
from pipeline.settings import Train
from pipeline.task import find
from pipeline.tasks.object_detection.boxes.read import Boxes, read
from pipeline.tasks.object_detection.evaluation.matches import difference, interval, match
from pipeline.tasks.object_detection.evaluation.metrics import average_precision
from pipeline.tasks.object_detection.model import loss
from pipeline.tasks.object_detection.settings import Augment
from pipeline.training import net as nets
from pipeline.training.batches import Batch

WORKERS = 2
CLASSES = 80
"""Of the boxes that are evaluated, as COCO has."""
Target = dict[str, Tensor]


def measure(quick: bool) -> list[Row]:
    """An epoch of each, without its evaluation, the peer in a process of its own."""
    images, boxes = (20, 10) if quick else (5000, 100)
    with scratch() as folder:
        one = job("detector", folder, "optimizer.name=adamw")
        steps = 3 if quick else len(one.batches[0])
        data = folder / "data" / one.task.about.data
        train(one, 3)  # the first steps of a process are slow
        words = "reference", str(data), one.hardware.precision, str(steps)
        found = alternate(
            {
                "ours": partial(train, one, steps),
                "reference": lambda: answer("bench.detection", *words)["images_per_second"],
            },
            1 if quick else 3,
        )
    seconds = [timed(partial(evaluate, *several(images, boxes)))]
    return [
        at_least(
            15, "detector, images/s against torchvision's reference loop", 1.5,
            ratios(found["ours"], found["reference"]),
        ),
        at_most(
            15, f"evaluation of {images:,} images with {boxes} boxes each: average precision, its "
            "interval, paired test", 10, seconds, "s",
        ),
    ]  # fmt: skip


class Scenes(Dataset[tuple[Tensor, Target]]):
    """The training split, an image and its target at a time."""

    def __init__(self, data: Path, augment: Augment | None) -> None:
        _, (images, self.boxes, _) = read(data, "train")
        self.files = images.files
        changes: list[Any] = []
        if augment is not None:
            zoom = (1 - augment.scale, 1 + augment.scale) if augment.scale else None
            changes = [
                v2.RandomAffine(0, translate=(augment.translate,) * 2, scale=zoom),
                *([v2.RandomHorizontalFlip()] if augment.flip else []),
                v2.ColorJitter(contrast=augment.contrast),
                v2.RandomInvert(0.5 * augment.invert),
            ]
        self.transforms = v2.Compose([*changes, v2.SanitizeBoundingBoxes(), v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image = v2.functional.pil_to_tensor(Image.open(io.BytesIO(self.files[index])))
        corners, labels, _ = self.boxes[index]
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.shape[-2:])
        target = {"boxes": boxes, "labels": torch.from_numpy(labels)}
        return self.transforms(tv_tensors.Image(image), target)


def collate(rows: Sequence[tuple[Tensor, Target]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(zip(*rows, strict=True))


class Reference(nn.Module):
    """The pipeline's network, called as torchvision's are: with lists, for a dict of losses."""

    def __init__(self, settings: Train, data: Path) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        task = find(model="detector")
        self.net = nets.build(task, settings.detector, read_card(data).facts).module
        self.settings = settings.training

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of a batch, by name."""
        sizes = torch.tensor([image.shape[-2:] for image in images])
        boxes, labels = (
            pad_sequence([one[name] for one in targets], batch_first=True, padding_value=value)
            for name, value in (("boxes", 0), ("labels", -1))
        )
        weight = float(sum(max(1, len(one["labels"])) for one in targets))
        inputs = {"images": torch.stack(list(images)), "sizes": sizes}
        batch = Batch(inputs, (boxes, labels), weight, weight)
        return {"loss": loss(self.net, batch, self.settings)}


def reference(data: Path, precision: str, steps: int) -> float:
    """Images per second of the peer."""
    settings = composed("detector", f"data={data}")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = Reference(settings, data).to(device).train()
    loader = DataLoader(
        Scenes(data, settings.augment), settings.training.batch_size, shuffle=True, drop_last=True,
        num_workers=WORKERS, persistent_workers=WORKERS > 0, collate_fn=collate,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.optimizer.lr, settings.optimizer.betas,
        weight_decay=settings.optimizer.weight_decay, fused=True,
    )  # fmt: skip

    def epoch(steps: int) -> None:
        warmup = LinearLR(optimizer, 1 / 1000, total_iters=min(1000, len(loader) - 1))
        for images, targets in islice(loader, steps):
            images = [image.to(device) for image in images]
            targets = [{name: value.to(device) for name, value in one.items()} for one in targets]
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = sum(model(images, targets).values())
            if not math.isfinite(value := losses.item()):
                sys.exit(f"Loss is {value}, stopping training")
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            warmup.step()

    epoch(3)
    return steps * settings.training.batch_size / timed(partial(epoch, steps))


def several(images: int, boxes: int) -> list[list[Boxes]]:
    """True boxes, and what two detectors could have found."""
    random = np.random.default_rng(0)
    corners, sides = (random.uniform(*ends, (images, boxes, 2)) for ends in ((0, 500), (10, 140)))
    labels = random.integers(CLASSES, size=(images, boxes))
    truth = np.concatenate([corners, corners + sides], 2).astype(np.float32)
    sets = [(truth, labels, np.ones_like(truth[..., 0]))]
    for error in (0.08, 0.1):
        moved = truth + error * random.standard_normal(truth.shape) * np.tile(sides, 2)
        guess = random.integers(CLASSES, size=labels.shape)
        said = np.where(random.random(labels.shape) < 0.2, guess, labels)
        scores = -np.sort(-random.random(labels.shape))
        sets.append((moved.astype(np.float32), said, scores.astype(np.float32)))
    return [list(map(Boxes, *one)) for one in sets]


def evaluate(truth: list[Boxes], first: list[Boxes], second: list[Boxes]) -> None:
    """What the evaluation measures of the second detector, and whether it beats the first."""
    one, two = (match(found, truth) for found in (first, second))
    interval(two, average_precision(second, truth, CLASSES).map, seed=0)
    difference(one, two, seed=0)


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "reference":
        rate = reference(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        print(json.dumps({"images_per_second": rate}))
    else:
        main("detection", measure)
