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

WINDOW, BANDS, CELLS = 256, 32, 16
Waves = Sequence[NDArray[np.float32]]


def seconds_of(waves: Waves, facts: Facts) -> NDArray[np.float64]:
    """Duration of each clip."""
    return np.array([len(wave) for wave in waves]) / facts.sample_rate


def spectrum(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log power of a waveform, float32 [32 bands, frames]: windows of 256 samples, half apart."""
    padded = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:: WINDOW // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)[:, 1:]) ** 2
    pooled = power.reshape(len(power), BANDS, -1).mean(axis=2)
    return np.log(pooled + 1e-4).T.astype(np.float32)


def stretched_spectrum(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log power float32 [32 bands, 16 cells]: `spectrum` with its time stretched to one length."""
    picture = spectrum(wave)
    where = np.linspace(0, picture.shape[1] - 1, CELLS)
    low = np.floor(where).astype(int)
    high = np.minimum(low + 1, picture.shape[1] - 1)
    share = (where - low).astype(np.float32)
    return picture[:, low] * (1 - share) + picture[:, high] * share


def _features(splits: Mapping[str, Waves]) -> dict[str, NDArray[np.float32]]:
    return {
        name: audit.dense_features(np.stack([stretched_spectrum(wave) for wave in part]))
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
