"""A detector of centres and those of torchvision; their loss, scores and answers."""

import math
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from pipeline.errors import PipelineError
from pipeline.task import Forward
from pipeline.tasks.object_detection.boxes.read import Boxes
from pipeline.tasks.object_detection.data import GREY, scales
from pipeline.tasks.object_detection.losses import STRIDE, focal, giou, targets
from pipeline.tasks.object_detection.settings import (
    ABOUT,
    DetectorTraining,
    Facts,
    TorchVision,
    TTFNet,
)
from pipeline.tasks.object_detection.weights import take
from pipeline.training.batches import Batch, Batches
from pipeline.training.net import WEIGHTS, Net, fill

LOWEST = 0.05
"""Score below which a peak is no box at all, whatever the threshold is."""
MOST = 50
"""Boxes of an image, at most."""
CAST = {"backbone", "head", "rpn.head", "roi_heads.box_predictor"}
"""Parts of torchvision's detectors that give features or codes of boxes."""
Output = dict[str, Any]


def block(channels: int, maps: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(channels, maps, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU(inplace=True))


class Detector(nn.Module):
    """Raw pixels to a heat map for each class, and a box at each of its cells."""

    def __init__(self, settings: TTFNet, facts: Facts) -> None:
        super().__init__()
        self.whole = facts.whole
        stages, laterals = list[nn.Module](), list[nn.Module]()
        widths = pairwise([facts.channels * STRIDE**2, *settings.channels])
        for (channels, maps), depth in zip(widths, settings.depth, strict=True):
            rest = [block(maps, maps) for _ in range(depth - 1)]
            stages.append(nn.Sequential(block(channels, maps, 2 if stages else 1), *rest))
            laterals.append(nn.Conv2d(maps, settings.neck, 1))
        self.stages, self.laterals = nn.ModuleList(stages), nn.ModuleList(laterals)
        self.necks = nn.ModuleList(
            nn.Sequential(*(block(settings.neck, settings.neck) for _ in range(max(1, depth - 1))))
            for depth in settings.depth[-2::-1]
        )
        self.head = nn.Conv2d(settings.neck, 4 + len(facts.classes), 1)
        nn.init.constant_(self.head.bias[4:], -math.log(99))  # type: ignore[index] # chances of 1 %

    def forward(self, images: Tensor, sizes: Tensor, **_targets: Any) -> Output:
        """Of `images` uint8 (or float) [b, c, h, w], once `sizes` [b, 2] large.

        Returns:
            `heat`: logits [b, classes, rows, columns]; `boxes`: x1 y1 x2 y2 [b, 4, rows, columns]
            in the network's pixels; `sizes`, as they came; `whole`, of the facts.
        """
        pixels = (images.to(torch.float32, memory_format=torch.channels_last) - 128) / 64
        # larger maps take long and tell no more
        maps, found = F.pixel_unshuffle(pixels, STRIDE), []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            maps = stage(maps)
            found.append(lateral(maps))
        merged = found.pop()
        for neck in self.necks:
            merged = neck(found.pop() + F.interpolate(merged, scale_factor=2, mode="nearest"))
        said = self.head(merged).float()
        # on a slice of what lies side by side, softplus alone takes six times as long
        sides, heat = said[:, :4].contiguous(), said[:, 4:].contiguous()
        reach = sides.clamp(-4, 4).exp() * (4 * STRIDE)
        x, y = _centres(reach)
        left, top, right, bottom = reach.unbind(1)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], 1)
        return {"heat": heat, "boxes": boxes, "sizes": sizes, "whole": self.whole}


class TorchVisionDetector(nn.Module):
    """Raw pixels to the boxes that a detector of torchvision finds, or to its loss."""

    def __init__(self, settings: TorchVision, facts: Facts) -> None:
        super().__init__()
        from torchvision.models import detection  # 2.6 s

        self.net = getattr(detection, settings.architecture)(
            weights=None, weights_backbone=None, num_classes=1 + len(facts.classes)
        )
        self.whole = facts.whole
        self.net.transform.fixed_size = (settings.size, settings.size)
        last = getattr(self.net, "roi_heads", self.net)
        last.score_thresh, last.detections_per_img = LOWEST, MOST
        for name, part in self.net.named_modules():
            if name in CAST:
                part.register_forward_hook(_in_float32)

    def forward(
        self, images: Tensor, sizes: Tensor, targets: tuple[Tensor, Tensor] | None = None
    ) -> Output:
        """Find boxes, or what they cost.

        Args:
            images: uint8 (or float) [b, c, size, size].
            sizes: heights and widths that the images had, [b, 2].
            targets: boxes [b, m, 4] in the network's pixels and labels [b, m], for training.

        Returns:
            `loss` while it trains, otherwise `found`: of each image corners [n, 4] in its own
            pixels, labels [n] and scores [n], the surest first.

        Raises:
            PipelineError: while it trains, a batch norm has a single value for each map.
        """
        pixels = images.float() if targets is None else _without_ignored(images.float(), *targets)
        coloured = list(pixels.expand(-1, 3, -1, -1) / 255)
        if targets is not None:
            # 0 is torchvision's background
            wanted = [
                {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
                for boxes, labels in zip(*targets, strict=True)
            ]
            try:
                losses = self.net(coloured, wanted)
            except ValueError as error:
                raise PipelineError(
                    f"a batch of {len(images)} is too small for the batch norms of images of "
                    f"{images.shape[-1]} pixels ({error}); raise training.batch_size"
                ) from error
            return {"loss": sum(losses.values())}
        found = []
        for one, (height, width) in zip(self.net(coloured), sizes.tolist(), strict=True):
            some = one["labels"] > 0
            scale = pixels.new_tensor(scales(height, width, images.shape[-1]) * 2)
            last = pixels.new_tensor([width, height] * 2)
            corners = torch.minimum((one["boxes"][some].float() / scale).clamp_min(0), last)
            found.append([corners, one["labels"][some] - 1, one["scores"][some].float()])
        return {"found": found, "whole": self.whole}


def build(settings: TTFNet | TorchVision, facts: Facts) -> tuple[nn.Module, None]:
    """A detector with its initial weights, the random ones from torch's global generator.

    Its buffer `threshold` is the score from which on a box is an answer: 0 until `settle`.

    Raises:
        PipelineError: `depth` is not of as many stages as `channels`; a file of weights can't be
            read or is not the one that is meant.
    """
    module = _network(settings, facts)
    if isinstance(settings, TorchVision) and settings.weights is not None:
        take(module.net, settings.architecture, settings.weights)
    return module, None


def load(folder: Path, settings: TTFNet | TorchVision, facts: Facts) -> tuple[nn.Module, None]:
    """Read what `pipeline.training.net.save` wrote: a network in eval mode, on the CPU.

    Raises:
        PipelineError: the weights are damaged or of another network.
    """
    module = _network(settings, facts)
    fill(module.state_dict(), folder / WEIGHTS, f"run `dvc repro {ABOUT.stage}` to make it")
    return module.eval(), None


def _network(settings: TTFNet | TorchVision, facts: Facts) -> nn.Module:
    if isinstance(settings, TTFNet) and len(settings.depth) != len(settings.channels):
        raise PipelineError(
            f"detector.depth has {len(settings.depth)} stages, detector.channels "
            f"{len(settings.channels)}; give each stage both"
        )
    network = Detector if isinstance(settings, TTFNet) else TorchVisionDetector
    module = network(settings, facts)  # type: ignore[arg-type]
    module.register_buffer("threshold", torch.zeros(()))
    return module.to(memory_format=torch.channels_last)


def _in_float32(_part: nn.Module, _inputs: Any, output: Any) -> Any:
    """What a part gives; torchvision's anchors and boxes are of its type, and bf16 has 8 bits."""
    return tree_map(Tensor.float, output)


def _without_ignored(images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Images that are grey where ignored boxes lie, but for what true ones cover.

    torchvision would learn that nothing is there.
    """
    middle = torch.arange(images.shape[-1], device=images.device) + 0.5
    across, down = (
        ((boxes[..., low, None] < middle) & (middle < boxes[..., low + 2, None])).float()
        for low in (0, 1)
    )
    true, ignored = (
        (down * those[..., None]).transpose(1, 2) @ across > 0
        for those in (labels >= 0, labels < -1)
    )
    return torch.where((ignored & ~true)[:, None], GREY, images)


def loss(module: Forward, batch: Batch, settings: DetectorTraining) -> Tensor:
    """Focal loss of the heat map, and GIoU of the boxes times `box_weight`, for each box.

    Of a detector of torchvision its own.
    """
    output = module(**batch.inputs, targets=batch.targets)
    if "loss" in output:
        return output["loss"]
    corners, labels = batch.targets
    heat, boxes, weight = targets(corners, labels, output["heat"].shape)
    alike = giou(output["boxes"], boxes)
    place = ((1 - alike) * weight).sum()
    # its root, or boxes that are a little off would hardly count
    sure = focal(output["heat"], heat, alike.detach().clamp_min(0).sqrt())
    return (sure + settings.box_weight * place) / batch.weight


def score(module: Forward, batches: Batches, settings: DetectorTraining) -> dict[str, float]:
    """Mean average precisions `map` and `map_50`, and `loss` where the network tells it."""
    # not with a served model
    from pipeline.tasks.object_detection.evaluation.metrics import average_precision

    total, parts = torch.zeros((), device=batches.device), []
    for batch in batches.epoch(0):
        output = module(**batch.inputs)
        if "heat" in output:
            total += loss(lambda said=output, **_: said, batch, settings) * batch.weight
        parts.append(_judged(output, batch))
    found, truth, ignored = ([*chain(*part)] for part in zip(*parts, strict=True))
    whole = float(batches.weights.sum()) if batches.weights is not None else batches.examples
    classes = 1 + max(max(one.labels, default=0) for one in found + truth)
    precision = average_precision(found, truth, classes, ignored=ignored)
    lost = {"loss": total.item() / whole} if "heat" in output else {}
    return {**lost, "map": precision.map, "map_50": precision.map_50}


def settle(module: nn.Module, forward: Forward, batches: Batches) -> None:
    """Have the network keep the threshold that gives the best F1 on these batches."""
    from pipeline.tasks.object_detection.evaluation.matches import best_threshold, match

    parts = [_judged(forward(**batch.inputs), batch) for batch in batches.epoch(0)]
    made = match(*([*chain(*part)] for part in zip(*parts, strict=True)))
    module.get_buffer("threshold").fill_(best_threshold(made))


def answer(output: Output, net: Net) -> list[list[dict[str, Any]]]:
    """Of each image its boxes, `{"box": [x1, y1, x2, y2], "label": "7", "score": 0.9}`.

    Boxes are in pixels of the image as it was sent; the surest comes first, and none is less sure
    than the network's threshold.
    """
    threshold = net.module.get_buffer("threshold").item()
    return [
        [
            {"box": box, "label": net.facts.classes[label], "score": score}
            for box, label, score in zip(*(part.tolist() for part in one), strict=True)
            if score >= threshold
        ]
        for one in decode(output)
    ]


def decode(output: Output) -> list[Boxes]:
    """The boxes of each image, in its own pixels: those found, or those at its heat map's peaks.

    A peak is the largest of the 3×3 cells around it, so no box has to be suppressed after. Its box
    is the mean of what these cells say, each counting as much as its largest chance.
    """
    if "found" in output:
        return [_boxes(output, *(part.cpu() for part in one)) for one in output["found"]]
    chances = output["heat"].float().sigmoid()
    sure = chances.amax(1, keepdim=True).clamp_min(1e-6)
    mean = F.avg_pool2d(output["boxes"].float() * sure, 3, 1, 1) / F.avg_pool2d(sure, 3, 1, 1)
    chances = torch.where(F.max_pool2d(chances, 3, 1, 1) == chances, chances, 0)
    count, _, rows, columns = chances.shape
    scores, peaks = chances.flatten(1).topk(min(MOST, chances[0].numel()))
    labels, cells = peaks // (rows * columns), peaks % (rows * columns)
    boxes = mean.flatten(2).transpose(1, 2)
    boxes = boxes[torch.arange(count, device=cells.device)[:, None], cells]
    found = []
    for corners, label, chance, (height, width) in zip(
        boxes.cpu(), labels.cpu(), scores.cpu(), output["sizes"].tolist(), strict=True
    ):
        scale = torch.tensor(scales(height, width, STRIDE * max(rows, columns)) * 2)
        inside = torch.minimum((corners / scale).clamp_min(0), torch.tensor([width, height] * 2))
        kept = chance > LOWEST
        found.append(_boxes(output, inside[kept], label[kept], chance[kept]))
    return found


def _boxes(output: Output, corners: Tensor, labels: Tensor, scores: Tensor) -> Boxes:
    """The boxes of one image; one that is nothing when it ends at whole pixels is left out."""
    corners = corners.round() if output["whole"] else corners
    kept = (corners[:, 2:] > corners[:, :2]).all(1)
    return Boxes(corners[kept].numpy(), labels[kept].numpy(), scores[kept].numpy())


def _judged(output: Output, batch: Batch) -> tuple[list[Boxes], list[Boxes], list[Boxes]]:
    """Of each image the boxes found, the true ones and the ignored ones, in pixels of its own."""
    size, true, ignored = batch.inputs["images"].shape[-1], list[Boxes](), list[Boxes]()
    for boxes, labels, (height, width) in zip(
        *(part.cpu() for part in batch.targets), batch.inputs["sizes"].tolist(), strict=True
    ):
        corners = boxes / torch.tensor(scales(height, width, size) * 2)
        for part, label in ((true, labels), (ignored, -2 - labels)):
            one = Boxes(corners.numpy(), label.numpy(), (label >= 0).float().numpy())
            part.append(one.where(one.labels >= 0))
    return decode(output), true, ignored


def _centres(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels in the middle of each cell of [b, c, rows, columns]: x [columns], y [rows, 1]."""
    rows, columns = maps.shape[2:]
    x = (torch.arange(columns, device=maps.device) + 0.5) * STRIDE
    y = (torch.arange(rows, device=maps.device) + 0.5) * STRIDE
    return x, y[:, None]
