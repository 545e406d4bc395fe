"""Damage to images, uint8 [n, channels, height, width].

Each function takes the severity and a seed; a severity of 0 gives the examples back as they are.
The same seed gives the same damage.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.classification.evaluation.subject import Corruption
from pipeline.images.damage import blur, noise

Images = NDArray[np.uint8]


def shift(images: Images, pixels: float, seed: int) -> Images:
    """Move by `pixels` in a random direction of the eight, filling up with black."""
    if not pixels:
        return images
    step = round(pixels)
    moved = np.zeros_like(images)
    compass = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    which = np.random.default_rng(seed).integers(len(compass), size=len(images))
    for number, (down, right) in enumerate(compass):
        rows = which == number
        to, origin = zip(_slide(down * step), _slide(right * step), strict=True)
        moved[(rows, slice(None), *to)] = images[(rows, slice(None), *origin)]
    return moved


def rotate(images: Images, degrees: float, seed: int) -> Images:
    """Turn by `degrees` about the centre, to a random side, bilinear, filling up with black."""
    if not degrees:
        return images
    side = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(images))
    angle = torch.from_numpy(side * math.radians(degrees)).float()
    zero = torch.zeros_like(angle)
    ratio = images.shape[2] / images.shape[3]
    turn = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin() * ratio, zero], 1),
            torch.stack([angle.sin() / ratio, angle.cos(), zero], 1),
        ],
        1,
    )
    grid = functional.affine_grid(turn, list(images.shape), align_corners=False)
    turned = functional.grid_sample(torch.from_numpy(images).float(), grid, align_corners=False)
    return turned.round().to(torch.uint8).numpy()


def _slide(step: int) -> tuple[slice, slice]:
    """Target and source of a move by `step` along one axis."""
    forth, back = (
        slice(max(step, 0), min(step, 0) or None),
        slice(max(-step, 0), -step if step > 0 else None),
    )
    return forth, back


CORRUPTIONS = (
    Corruption("noise", "standard deviation, share of the range", (0, 0.1, 0.2, 0.3, 0.4), noise),
    Corruption("blur", "radius in pixels", (0, 0.5, 1, 1.5, 2), blur),
    Corruption("shift", "pixels", (0, 1, 2, 4, 6), shift),
    Corruption("rotation", "degrees", (0, 10, 20, 30, 45), rotate),
)
