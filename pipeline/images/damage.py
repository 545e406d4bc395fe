"""Damage to images, uint8 [n, channels, height, width]; a severity of 0 gives them back."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Images = NDArray[np.uint8]


def noise(images: Images, deviation: float, seed: int) -> Images:
    """Add normal noise; `deviation` is a share of the full range."""
    if not deviation:
        return images
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
