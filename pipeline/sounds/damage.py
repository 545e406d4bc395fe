"""Damage to waveforms, a list of float32 arrays in -1..1.

The same seed gives the same damage.
"""

import math

import numpy as np
from numpy.typing import NDArray

Waves = list[NDArray[np.float32]]


def hiss(waves: Waves, decibels: float, seed: int) -> Waves:
    """Add white noise at a signal-to-noise ratio in decibels; infinite adds none."""
    generator = np.random.default_rng(seed)
    noisy = []
    for wave in waves:
        power = float(np.mean(np.square(wave, dtype=np.float64)))
        draw = generator.normal(scale=math.sqrt(power / 10 ** (decibels / 10)), size=len(wave))
        noisy.append(np.clip(wave + draw, -1, 1).astype(np.float32))
    return noisy


def tempo(waves: Waves, factor: float, _seed: int = 0) -> Waves:
    """Play `factor` times as fast, by linear interpolation: the pitch rises too, as on a tape.

    A factor of 1 gives the clips back as they are.
    """
    if factor == 1:
        return waves
    played = []
    for wave in waves:
        where = np.arange(0, max(len(wave) - 1, 1), factor)
        played.append(np.interp(where, np.arange(len(wave)), wave).astype(np.float32))
    return played
