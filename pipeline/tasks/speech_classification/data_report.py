"""What the preparation draws of clips."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data.data_report import Look, report
from pipeline.evaluation import audit
from pipeline.figures.sheets import Caption, spectrogram_sheet
from pipeline.sounds import wav
from pipeline.tasks.speech_classification.settings import Facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Waves = Sequence[NDArray[np.float32]]


def seconds_of(waves: Waves, facts: Facts) -> NDArray[np.float64]:
    """Duration of each clip."""
    return np.array([len(wave) for wave in waves]) / facts.sample_rate


def spectrum(wave: NDArray[np.float32], bands: int = 32, window: int = 256) -> NDArray[np.float32]:
    """Log power of a waveform, float32 [bands, frames]: windows of `window` samples, half apart."""
    padded = np.pad(wave, (0, max(0, window - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)[:, 1:]) ** 2
    pooled = power.reshape(len(power), bands, -1).mean(axis=2)
    return np.log(pooled + 1e-4).T.astype(np.float32)


def loudness_map(wave: NDArray[np.float32], cells: int = 16) -> NDArray[np.float32]:
    """Log power float32 [bands, cells] with the time axis stretched to a fixed number of cells."""
    picture = spectrum(wave)
    where = np.linspace(0, picture.shape[1] - 1, cells)
    low = np.floor(where).astype(int)
    high = np.minimum(low + 1, picture.shape[1] - 1)
    share = (where - low).astype(np.float32)
    return picture[:, low] * (1 - share) + picture[:, high] * share


def _features(splits: Mapping[str, Waves]) -> dict[str, NDArray[np.float32]]:
    return {
        name: audit.dense_features(np.stack([loudness_map(wave) for wave in part]))
        for name, part in splits.items()
    }


def _sheet(waves: Waves, facts: Facts, captions: Sequence[Caption], title: str) -> "Figure":
    pictures = [spectrum(wave) for wave in waves]
    return spectrogram_sheet(pictures, seconds_of(waves, facts).tolist(), captions, title)


LOOK = Look(
    column="audio",
    read=wav.read,
    sizes=seconds_of,
    unit="seconds",
    features=_features,
    near=0.995,
    shown=8,
    sheet=_sheet,
)
data_report = partial(report, LOOK)
