"""Damage to raw examples, for accuracy against severity.

Images are uint8 [n, channels, height, width], texts a list, waveforms a list of float32 arrays in
-1..1. Each function takes the severity and a seed; a severity of 0 (infinite for the noise of a
sound, 1 for its speed) gives the examples back as they are. The same seed gives the same damage.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Images = NDArray[np.uint8]
Waves = list[NDArray[np.float32]]


class Corruption(NamedTuple):
    """A kind of damage, its unit, and the severities to try; the first one is none."""

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[Any, float, int], Any]


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
    flat = torch.from_numpy(images.reshape(-1, 1, height, width)).float()
    flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    flat = functional.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return flat.round().to(torch.uint8).numpy().reshape(count, channels, height, width)


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


def typos(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Misspell this share of the words of four letters or more: swap, drop or double a letter."""
    if not share:
        return list(texts)
    generator = np.random.default_rng(seed)
    return [
        " ".join(
            _misspell(word, generator)
            if len(word) >= 4 and word.isalpha() and generator.random() < share
            else word
            for word in text.split(" ")
        )
        for text in texts
    ]


def upper_case(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Write this share of the words in capitals."""
    if not share:
        return list(texts)
    generator = np.random.default_rng(seed)
    return [
        " ".join(word.upper() if generator.random() < share else word for word in text.split(" "))
        for text in texts
    ]


def hiss(waves: Waves, decibels: float, seed: int) -> Waves:
    """Add white noise at a signal-to-noise ratio in decibels; infinite adds none."""
    if math.isinf(decibels):
        return waves
    generator = np.random.default_rng(seed)
    noisy = []
    for wave in waves:
        power = float(np.mean(np.square(wave, dtype=np.float64)))
        draw = generator.normal(scale=math.sqrt(power / 10 ** (decibels / 10)), size=len(wave))
        noisy.append(np.clip(wave + draw, -1, 1).astype(np.float32))
    return noisy


def tempo(waves: Waves, factor: float, _seed: int = 0) -> Waves:
    """Play `factor` times as fast, by linear interpolation: the pitch rises too, as on a tape."""
    if factor == 1:
        return waves
    played = []
    for wave in waves:
        where = np.arange(0, max(len(wave) - 1, 1), factor)
        played.append(np.interp(where, np.arange(len(wave)), wave).astype(np.float32))
    return played


IMAGE = (
    Corruption("noise", "standard deviation, share of the range", (0, 0.1, 0.2, 0.3, 0.4), noise),
    Corruption("blur", "radius in pixels", (0, 0.5, 1, 1.5, 2), blur),
    Corruption("shift", "pixels", (0, 1, 2, 4, 6), shift),
    Corruption("rotation", "degrees", (0, 10, 20, 30, 45), rotate),
)
TEXT = (
    Corruption("typos", "share of the long words", (0, 0.1, 0.25, 0.5), typos),
    Corruption("capitals", "share of the words", (0, 0.5, 1), upper_case),
)
AUDIO = (
    Corruption("noise", "signal-to-noise ratio in dB", (math.inf, 30, 20, 10, 0), hiss),
    Corruption("speed", "times as fast", (1, 0.7, 0.85, 1.15, 1.3), tempo),
)
CORRUPTIONS = {"image": IMAGE, "text": TEXT, "audio": AUDIO}


def _slide(step: int) -> tuple[slice, slice]:
    """Target and source of a move by `step` along one axis."""
    forth, back = (
        slice(max(step, 0), min(step, 0) or None),
        slice(max(-step, 0), -step if step > 0 else None),
    )
    return forth, back


def _misspell(word: str, generator: np.random.Generator) -> str:
    at = int(generator.integers(1, len(word) - 2))
    kind = generator.integers(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]
