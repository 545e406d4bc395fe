"""What a heat map and its boxes should be, and how far off they are."""

import torch
from torch import Tensor
from torch.nn import functional as F

STRIDE = 4
"""Pixels from one cell of the heat map to the next."""
SPREAD = 0.54
"""Of a box, as wide as six deviations of its Gaussian (TTFNet's alpha)."""
UNSEEN = 0.9999
"""Heat where an ignored box lies: too near a centre's 1 to be a miss, and no centre."""


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


def focal(logits: Tensor, heat: Tensor, quality: Tensor) -> Tensor:
    """Focal loss with fewer negatives around a centre (Law & Deng 2018), a sum.

    The chance of a centre should be as high as its box is good (Li et al. 2020, "Generalized focal
    loss"), so that scores rank boxes by their place too.

    Args:
        logits: [b, classes, rows, columns].
        heat: as `targets` gives it.
        quality: from 0 to 1, of the box that the network places at each cell, [b, rows, columns].
    """
    chance, miss = logits.sigmoid(), F.softplus(logits)  # log 1 / (1 - chance)
    quality = quality[:, None]
    hit = (miss - quality * logits) * (quality - chance) ** 2
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
