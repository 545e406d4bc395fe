"""Random changes of training images and their boxes, a whole batch at once, on the device."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from pipeline.tasks.object_detection.settings import Augment
from pipeline.training.batches import Batch

LEAST = 0.25
"""Of a box's area; with less of it left in the image, it is no object any more."""


def changes(config: Augment) -> Callable[[Batch, torch.Generator], Batch]:
    """Zoom, shift and mirror each image and its boxes by amounts of its own; change its contrast.

    What comes in from beyond the border repeats it. Boxes are cut at the border; the label of one
    of which too little is left becomes -1. Images become float32, around 0 to 255.
    """

    def change(batch: Batch, generator: torch.Generator) -> Batch:
        images, (boxes, labels) = batch.inputs["images"], batch.targets
        count, _, height, width = images.shape
        draw = torch.rand(count, 6, generator=generator, device=images.device)
        zoom = 1 + config.scale * (draw[:, 0] * 2 - 1)
        side = torch.where(draw[:, 4] < 0.5 * config.flip, -1.0, 1.0)
        # in units of half the image, as affine_grid's: out = zoom · side · in + shift
        # whole pixels, for what is between them is smoother than what the model will meet
        half = _half(height, width, images.device)
        shift = (2 * config.translate * (draw[:, 1:3] * 2 - 1) * half).round() / half
        across, down = zoom * side, zoom
        turn = torch.zeros(count, 2, 3, device=images.device)
        turn[:, 0, 0], turn[:, 0, 2] = 1 / across, -shift[:, 0] / across
        turn[:, 1, 1], turn[:, 1, 2] = 1 / down, -shift[:, 1] / down
        grid = affine_grid(turn, [count, 1, height, width], align_corners=False)
        changed = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        factor = 1 + config.contrast * (draw[:, 3] * 2 - 1)
        factor = torch.where(draw[:, 5] < 0.5 * config.invert, -factor, factor)
        changed = (changed - 128) * factor.view(-1, 1, 1, 1) + 128
        boxes, labels = _moved(boxes, labels, torch.stack([across, down], 1), shift, half)
        return batch._replace(inputs={**batch.inputs, "images": changed}, targets=(boxes, labels))

    return change


@lru_cache(maxsize=8)
def _half(height: int, width: int, device: torch.device) -> Tensor:
    """Half of an image, x and y [2]; it goes to the device once, which the host waits for."""
    return torch.tensor([width / 2, height / 2], device=device)


def _moved(
    boxes: Tensor, labels: Tensor, factor: Tensor, shift: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes [b, m, 4] after corners were multiplied and shifted [b, 2] about the centre `half`."""
    corners = boxes.view(*labels.shape, 2, 2)
    corners = (corners - half) * factor[:, None, None] + (half + shift * half)[:, None, None]
    # a mirrored box has its left side right
    corners = torch.stack([corners.amin(2), corners.amax(2)], 2)
    cut = torch.minimum(corners.clamp_min(0), 2 * half)
    left = (cut[:, :, 1] - cut[:, :, 0]).prod(-1)
    whole = (corners[:, :, 1] - corners[:, :, 0]).prod(-1)
    kept = left > LEAST * whole
    return cut.flatten(2), torch.where(kept, labels, -1)
