"""A detector of centres, its loss, its scores, its answers."""

import math
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.batches import Batch, Batches
from pipeline.errors import PipelineError
from pipeline.net import Net
from pipeline.task import Forward
from pipeline.tasks.object_detection.boxes.read import Boxes
from pipeline.tasks.object_detection.data import scales
from pipeline.tasks.object_detection.settings import DetectorTraining, Facts, Model

STRIDE = 4
"""Pixels from one cell of the heat map to the next."""
SPREAD = 0.54
"""Of a box, as wide as six deviations of its Gaussian (TTFNet's alpha)."""
UNSEEN = 0.9999
"""Heat where an ignored box lies: too near a centre's 1 to be a miss, and no centre."""
LOWEST = 0.05
"""Score below which a peak is no box at all, whatever the threshold is."""
Output = dict[str, Tensor]


def block(channels: int, maps: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(channels, maps, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU(inplace=True))


class Detector(nn.Module):
    """Raw pixels to a heat map for each class, and a box at each of its cells."""

    def __init__(self, settings: Model, facts: Facts) -> None:
        super().__init__()
        self.stem = block(facts.channels, settings.stem, 2)
        stages, laterals = [], []
        widths = pairwise([settings.stem, *settings.channels])
        for (channels, maps), depth in zip(widths, settings.depth, strict=True):
            rest = [block(maps, maps) for _ in range(depth - 1)]
            stages.append(nn.Sequential(block(channels, maps, 2), *rest))
            laterals.append(nn.Conv2d(maps, settings.neck, 1))
        self.stages, self.laterals = nn.ModuleList(stages), nn.ModuleList(laterals)
        self.necks = nn.ModuleList(
            nn.Sequential(*(block(settings.neck, settings.neck) for _ in range(max(1, depth - 1))))
            for depth in settings.depth[-2::-1]
        )
        self.head = nn.Conv2d(settings.neck, 4 + len(facts.classes), 1)
        nn.init.constant_(self.head.bias[4:], -math.log(99))  # type: ignore[index] # chances of 1 %

    def forward(self, images: Tensor, sizes: Tensor) -> Output:
        """Of `images` uint8 (or float) [b, c, h, w], once `sizes` [b, 2] large.

        Returns:
            `heat`: logits [b, classes, rows, columns]; `boxes`: x1 y1 x2 y2 [b, 4, rows, columns]
            in the network's pixels; `sizes`, as they came.
        """
        maps = self.stem((images.to(torch.float32, memory_format=torch.channels_last) - 128) / 64)
        found = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            maps = stage(maps)
            found.append(lateral(maps))
        merged = found.pop()
        for neck in self.necks:
            merged = neck(found.pop() + F.interpolate(merged, scale_factor=2, mode="nearest"))
        said = self.head(merged).float()
        reach = said[:, :4].clamp(-4, 4).exp() * (4 * STRIDE)
        x, y = _centres(reach)
        left, top, right, bottom = reach.unbind(1)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], 1)
        return {"heat": said[:, 4:], "boxes": boxes, "sizes": sizes}


def build(settings: Model, facts: Facts) -> tuple[nn.Module, None]:
    """A detector with random weights, drawn from torch's global generator.

    Its buffer `threshold` is the score from which on a box is an answer: 0 until `settle`.

    Raises:
        PipelineError: `depth` is not of as many stages as `channels`.
    """
    if len(settings.depth) != len(settings.channels):
        raise PipelineError(
            f"detector.depth has {len(settings.depth)} stages, detector.channels "
            f"{len(settings.channels)}; give each stage both"
        )
    module: nn.Module = Detector(settings, facts)
    module.register_buffer("threshold", torch.zeros(()))
    return module.to(memory_format=torch.channels_last), None


def loss(module: Forward, batch: Batch, settings: DetectorTraining) -> Tensor:
    """Focal loss of the heat map, and GIoU of the boxes times `box_weight`, for each box."""
    output = module(**batch.inputs)
    corners, labels = batch.targets
    heat, boxes, weight = targets(corners, labels, output["heat"].shape)
    place = ((1 - giou(output["boxes"], boxes)) * weight).sum()
    return (focal(output["heat"], heat) + settings.box_weight * place) / batch.weight


def score(module: Forward, batches: Batches, settings: DetectorTraining) -> dict[str, float]:
    """`loss`, and the mean average precisions `map` and `map_50`."""
    # not with a served model
    from pipeline.tasks.object_detection.evaluation.metrics import average_precision

    total, parts = torch.zeros((), device=batches.device), []
    for batch in batches.epoch(0):
        output = module(**batch.inputs)
        total += loss(partial(_given, output), batch, settings) * batch.weight
        parts.append(_judged(output, batch))
    found, truth, ignored = ([*chain(*part)] for part in zip(*parts, strict=True))
    whole = float(batches.weights.sum()) if batches.weights is not None else batches.examples
    precision = average_precision(found, truth, output["heat"].shape[1], ignored=ignored)
    return {"loss": total.item() / whole, "map": precision.map, "map_50": precision.map_50}


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


def targets(boxes: Tensor, labels: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """What the network should say of a batch.

    Args:
        boxes: [b, m, 4] in the network's pixels.
        labels: [b, m]; -1 is no box, -2 - label one that is ignored.
        shape: of the heat map, [b, classes, rows, columns].

    Returns:
        The heat map, one Gaussian at the centre of each box, `UNSEEN` on all of an ignored one; at
        each cell the box to be found there, [b, 4, rows, columns]; and how much it counts there,
        [b, rows, columns]: all the cells of a box for 1, or small ones would hardly count.
    """
    count, classes, rows, columns = shape
    middle = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE).floor()
    deviation = ((boxes[..., 2:] - boxes[..., :2]) * (SPREAD / 6 / STRIDE)).clamp_min(0.3)
    there, ignored = labels >= 0, labels < -1
    across, down = (
        torch.where(
            ignored[..., None],
            (low < (cell + 0.5) * STRIDE) & ((cell + 0.5) * STRIDE < high),
            torch.exp(-(((cell - centre) / width) ** 2) / 2),
        )
        for cell, centre, width, low, high in zip(
            (torch.arange(cells, device=boxes.device) for cells in (columns, rows)),
            middle[..., None].unbind(2),
            deviation[..., None].unbind(2),
            boxes[..., None, :2].unbind(3),
            boxes[..., None, 2:].unbind(3),
            strict=True,
        )
    )
    bells = down[..., None] * across[:, :, None] * (there + UNSEEN * ignored)[:, :, None, None]
    bells = torch.where(bells < 0.01, 0, bells)
    heat = bells.new_zeros(count, classes, rows, columns)
    image = torch.arange(count, device=boxes.device)
    for place in range(boxes.shape[1]):  # [b, m, classes, rows, columns] would not fit a cache
        label = torch.where(ignored, -2 - labels, labels)[:, place].clamp_min(0)
        heat[image, label] = torch.maximum(heat[image, label], bells[:, place])
    bells = bells * there[:, :, None, None]
    weight, which = bells.max(1)
    image = image[:, None, None]
    weight = weight / bells.sum((2, 3)).clamp_min(1e-6)[image, which]
    return heat, boxes[image, which].permute(0, 3, 1, 2), weight


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """Focal loss with fewer negatives around a centre (Law & Deng 2018), a sum."""
    chance, miss = logits.sigmoid(), F.softplus(logits)  # log 1 / (1 - chance)
    hit = (miss - logits) * (1 - chance) ** 2
    # a fourth power takes five times as long as two squares
    miss = miss * chance**2 * ((1 - heat) ** 2) ** 2
    return torch.where(heat == 1, hit, miss).sum()


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes [b, 4, …] with others, [b, …]."""
    left, top, right, bottom = first.unbind(1)
    x1, y1, x2, y2 = second.unbind(1)
    across = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp_min(0)
    down = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp_min(0)
    both = across * down
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - both
    hull = (torch.maximum(right, x2) - torch.minimum(left, x1)) * (
        torch.maximum(bottom, y2) - torch.minimum(top, y1)
    )
    return both / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def decode(output: Output, most: int = 50) -> list[Boxes]:
    """The boxes at the peaks of each image's heat map, in pixels of the image as it came.

    A peak is the largest of the 3×3 cells around it, so no box has to be suppressed after. Its box
    is the mean of what these cells say, each counting as much as its largest chance.
    """
    chances = output["heat"].float().sigmoid()
    sure = chances.amax(1, keepdim=True).clamp_min(1e-6)
    mean = F.avg_pool2d(output["boxes"].float() * sure, 3, 1, 1) / F.avg_pool2d(sure, 3, 1, 1)
    chances = torch.where(F.max_pool2d(chances, 3, 1, 1) == chances, chances, 0)
    count, _, rows, columns = chances.shape
    scores, peaks = chances.flatten(1).topk(min(most, chances[0].numel()))
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
        found.append(Boxes(inside[kept].numpy(), label[kept].numpy(), chance[kept].numpy()))
    return found


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


def _given(output: Output, **_inputs: Tensor) -> Output:
    """A network that has answered already."""
    return output


def _centres(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels in the middle of each cell of [b, c, rows, columns]: x [columns], y [rows, 1]."""
    rows, columns = maps.shape[2:]
    x = (torch.arange(columns, device=maps.device) + 0.5) * STRIDE
    y = (torch.arange(rows, device=maps.device) + 0.5) * STRIDE
    return x, y[:, None]
