"""Damage to images, uint8 [n, channels, height, width]; a severity of 0 gives them back."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Images = NDArray[np.uint8]


def noise(images: Images, deviation: float, seed: int) -> Images:
    """Add normal noise; `deviation` is a share of the full range."""
    draw = np.random.default_rng(seed).normal(scale=255 * deviation, size=images.shape)
    return np.clip(images + draw, 0, 255).astype(np.uint8)


def blur(images: Images, radius: float, _seed: int = 0) -> Images:
    """Gaussian blur with a standard deviation of `radius` pixels."""
    if not radius:
        return images
    reach = math.ceil(3 * radius)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    kernel = kernel / kernel.sum()
    count, channels, height, width = images.shape
    flat = torch.from_numpy(images.astype(np.float32).reshape(-1, 1, height, width))
    flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    flat = functional.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return flat.round().to(torch.uint8).numpy().reshape(count, channels, height, width)


def shift(images: Images, pixels: float, seed: int) -> Images:
    """Move by `pixels` in a random direction of the eight, filling up with black."""
    step = round(pixels)
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (step, step), (step, step)))
    moved = np.empty_like(images)
    compass = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    which = np.random.default_rng(seed).integers(len(compass), size=len(images))
    for number, (down, right) in enumerate(compass):
        rows = which == number
        top, left = step - down * step, step - right * step
        moved[rows] = padded[rows, :, top : top + height, left : left + width]
    return moved


def rotate(images: Images, degrees: float, seed: int) -> Images:
    """Turn by `degrees` about the centre, to a random side, bilinear, filling up with black."""
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
