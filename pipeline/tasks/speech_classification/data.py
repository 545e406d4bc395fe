"""Labelled clips: prepared splits as batches, raw clips as inputs."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.classification.data.labels import labels_of
from pipeline.errors import PipelineError
from pipeline.prepared import SplitName, contents, first_row, read_split
from pipeline.sounds.wav import read_wav, resample
from pipeline.training.batches import Batches, Ragged
from pipeline.training.net import Net, file_bytes

TASK = "speech_classification"


def load(
    folder: Path, split: SplitName, _net: Net | None = None, *, device: torch.device, **how: Any
) -> Batches:
    """Batches of one split: `waveforms`, float32 [batch, samples] in [-1, 1), and `lengths`, int64.

    Batches hold clips of similar length and are padded with zeros to the longest of them; `lengths`
    [batch] counts the samples before the padding. `how` is what `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read, or a clip is corrupt.
    """
    card, table = read_split(folder, split, TASK)
    path = folder / f"{split}.parquet"
    clips = []
    for row, content in enumerate(contents(table["audio"]).to_pylist()):
        samples, rate = read_wav(content, f"{path}, row {row}")
        if rate != card.facts.sample_rate:
            raise PipelineError(
                f"{path}, row {row}: has {rate} Hz, the data set says {card.facts.sample_rate}; "
                "run `dvc repro -f prepare@audio`"
            )
        clips.append(samples)
    ragged = Ragged.of(clips, device)
    targets = torch.tensor(labels_of(table, card.facts.classes, path), device=device)

    def collate(index: Tensor, place: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        samples, sizes = ragged.pad(index)
        inputs = {"waveforms": samples.float().div_(32768), "lengths": sizes}
        return inputs, targets[place]

    return Batches(len(targets), device, collate, lengths=ragged.offsets.diff(), **how)


def encode(raw: Sequence[Any], net: Net) -> dict[str, Tensor]:
    """Clips, see `sound`, as `waveforms`, float32 [n, samples], and `lengths`, int64 [n].

    Raises:
        ValueError: a clip is of another kind.
    """
    waves = [torch.from_numpy(sound(each, net.facts.sample_rate)) for each in raw]
    return {
        "waveforms": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        "lengths": torch.tensor([len(each) for each in waves]),
    }


def example(folder: Path) -> str:
    """The first clip of the validation split, a WAV file as base64 text."""
    return base64.b64encode(first_row(folder)["audio"]["bytes"]).decode()


def sound(raw: Any, rate: int) -> NDArray[np.float32]:
    """One clip as float32 samples in -1..1, mono, at `rate` Hz.

    Args:
        raw: a PCM WAV file of 4,000 to 192,000 Hz, its bytes or base64 text; or an array of float
            (-1..1) or int16 samples at `rate`.
        rate: the model's.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(raw, bytes | str):
        array = np.asarray(raw)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "fiu":
            raise ValueError(f"a sound is a list of numbers, not {array.dtype} {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError("a sound has samples that are no finite numbers")
        scale = 32768 if array.dtype == np.int16 else 1
        return (array / scale).astype(np.float32)
    try:
        samples, before = read_wav(file_bytes(raw), "the clip")
    except PipelineError as error:
        raise ValueError(str(error)) from None
    return resample([samples], before, rate)[0].astype(np.float32) / np.float32(32768)
