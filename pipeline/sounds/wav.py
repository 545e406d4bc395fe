"""WAV files to samples and back."""

import io
import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.prepared import contents

Samples = NDArray[np.int16]


def read_wav(content: bytes | None, where: str) -> tuple[Samples, int]:
    """Samples [n] and sample rate of a PCM WAV file of 8 to 32 bits; channels are averaged.

    Raises:
        PipelineError: the clip is missing, empty, truncated or of another kind; names `where`.
    """
    try:
        with wave.open(io.BytesIO(content or b"")) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data, expected = file.readframes(file.getnframes()), file.getnframes()
    except Exception as error:  # wave raises whatever a malformed file leads it to
        raise PipelineError(
            f"{where}: is not a PCM WAV file that can be read ({str(error) or 'too short'}); "
            "convert or remove it"
        ) from error
    if not 4_000 <= rate <= 192_000:
        raise PipelineError(f"{where}: has {rate} Hz, not 4,000 to 192,000; convert or remove it")
    if not data or len(data) != expected * width * channels:
        raise PipelineError(f"{where}: is empty or truncated; replace or remove it")
    if width == 2:
        samples = np.frombuffer(data, "<i2")
    elif width == 1:
        samples = (np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8
    else:
        # the two high bytes of each sample
        high = np.frombuffer(data, np.uint8).reshape(-1, width)[:, -2:]
        samples = np.ascontiguousarray(high).view("<i2").ravel()
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1).round().astype(np.int16)
    return samples, rate


def resample(clips: Sequence[Samples], before: int, after: int) -> list[Samples]:
    """Each clip at another sample rate (Hz), by scipy's polyphase filter.

    All clips go through it in one row: with gaps longer than the filter, and starts that are
    multiples of the step, each comes out as it would alone.
    """
    if before == after:
        return list(clips)
    from scipy.signal import resample_poly

    common = math.gcd(before, after)
    up, down = after // common, before // common
    gap = 10 * max(up, down) // up + 1
    starts = np.cumsum([0, *(-(-(len(clip) + gap) // down) * down for clip in clips)])
    row = np.zeros(starts[-1])
    for clip, start in zip(clips, starts[:-1], strict=True):
        row[start : start + len(clip)] = clip
    row = resample_poly(row, up, down).round().clip(-32768, 32767).astype(np.int16)
    places = starts[:-1] // down * up
    return [
        row[place : place - (-len(clip) * up // down)]
        for clip, place in zip(clips, places, strict=True)
    ]


def read(table: pa.Table, _facts: Any, path: Path) -> list[NDArray[np.float32]]:
    """The clips of a split that was read from `path`, each in -1..1.

    Raises:
        PipelineError: see `read_wav`.
    """
    clips = contents(table["audio"]).to_pylist()
    waves = (read_wav(clip, f"{path}, row {row}")[0] for row, clip in enumerate(clips))
    return [wave.astype(np.float32) / np.float32(32768) for wave in waves]


def write_wav(samples: Samples, rate: int) -> bytes:
    """A 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
