"""Spoken digits: from a source to the prepared data set, and from there to batches."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.batches import Batches, Ragged
from pipeline.data.prepared import SplitName, contents, dataset, identities, media, read_split
from pipeline.data.sources import (
    Index,
    cap,
    distinct,
    labelled_files,
    numbered,
    package_file,
    partition,
)
from pipeline.errors import PipelineError
from pipeline.settings import AudioSource

Samples = NDArray[np.int16]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    "en",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
    "en-us",
    "en-us-nyc",
)
_SPEEDS = (130, 230)
_PITCHES = (25, 75)
_PER_PROCESS = 500
_ROOT = str(Path(__file__).parents[2])


def prepare(
    source: AudioSource, seed: int, max_examples: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Synthesise or read clips and cut them into splits of different speakers.

    Returns:
        The card and the splits that `prepared.write` takes: columns `audio` (16-bit mono WAV),
        `label`, `speaker`, and of synthesised clips `accent`, `speed` and `pitch`.

    Raises:
        PipelineError: the source is missing, empty or corrupt, or too small for its splits.
    """
    import datasets

    shares = {"validation": source.validation, "test": source.test}
    features: dict[str, Any] = {"speaker": datasets.Value("string")}
    if source.kind == "espeak":
        table, rows = _espeak(source, shares, seed, max_examples)
        classes = list(DIGITS)
        features |= {
            "accent": datasets.Value("string"),
            "speed": datasets.Value("int64"),
            "pitch": datasets.Value("int64"),
        }
        about = {
            "source": "synthesised with espeak-ng 1.52 of the package espeakng-loader",
            "licence": "made by this project; espeak-ng is GPL-3.0-or-later and no part of it",
            "citation": "espeak-ng, https://github.com/espeak-ng/espeak-ng",
        }
    else:
        table, classes, rows = _folder(source, shares, seed)
        about = {
            "source": f"folder {Path(source.folder or '').name}",
            "licence": "not stated",
            "citation": "not stated",
        }
    labels = table["label"].to_numpy()
    kept, dropped = distinct(identities(table), labels)
    features = {
        "audio": datasets.Audio(sampling_rate=source.sample_rate, decode=False),
        "label": datasets.ClassLabel(names=classes),
        **features,
    }
    splits = {
        split: dataset(table, features, cap(part[np.isin(part, kept)], labels, max_examples))
        for split, part in rows.items()
    }
    card = {
        "task": "audio",
        "name": source.name,
        **about,
        "classes": classes,
        "seed": seed,
        "dropped": dropped,
        "sample_rate": source.sample_rate,
    }
    return card, splits


def load(
    folder: Path,
    split: SplitName,
    *,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches of one split: `waveforms`, float32 [batch, samples] in [-1, 1), and `lengths`, int64.

    Batches hold clips of similar length and are padded with zeros to the longest of them; `lengths`
    [batch] counts the samples before the padding.

    Raises:
        PipelineError: the split can't be read, or a clip is corrupt.
    """
    card, table = read_split(folder, split, "audio")
    path = folder / f"{split}.parquet"
    clips = []
    for row, content in enumerate(contents(table["audio"]).to_pylist()):
        samples, rate = read_wav(content, f"{path}, row {row}")
        if rate != card.sample_rate:
            raise PipelineError(
                f"{path}, row {row}: has {rate} Hz, the data set says {card.sample_rate}; "
                "run `dvc repro -f prepare@audio`"
            )
        clips.append(samples)
    lengths = np.fromiter(map(len, clips), np.int64, len(clips))
    ragged = Ragged(
        torch.from_numpy(np.concatenate(clips)).to(device),
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
    )

    def collate(index: Tensor) -> dict[str, Tensor]:
        samples, sizes = ragged.pad(index)
        return {"waveforms": samples.float().div_(32768), "lengths": sizes}

    return Batches(
        labels=torch.tensor(table["label"].to_numpy(), device=device),
        collate=collate,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        lengths=torch.from_numpy(lengths),
        shard=shard,
    )


def load_training(
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
    shard: tuple[int, int] = (0, 1),
) -> tuple[Batches, Batches]:
    """Shuffled training batches, and all of the validation split in larger ones."""
    return (
        load(
            folder,
            "train",
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            shard=shard,
        ),
        load(folder, "validation", batch_size=4 * batch_size, device=device),
    )


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


def write_wav(samples: Samples, rate: int) -> bytes:
    """A 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


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


def voices() -> list[tuple[str, str]]:
    """(name, accent) of every English voice of espeak-ng: each accent in each of its variants."""
    folder = package_file("espeakng_loader", "espeak-ng-data/voices/!v")
    variants = ["", *sorted(f"+{path.name}" for path in folder.iterdir())]
    return [(accent + variant, accent) for accent in ACCENTS for variant in variants]


def _espeak(
    source: AudioSource, shares: dict[str, float], seed: int, max_examples: int | None
) -> tuple[pa.Table, dict[str, Index]]:
    """A table of clips, and the rows of each split; voices are shared out accent by accent."""
    if source.clips is None:
        raise PipelineError("audio.clips is null; give the number of clips to synthesise")
    random = np.random.default_rng([seed, 1])
    names, accents = zip(*voices(), strict=True)
    accent = np.array([ACCENTS.index(name) for name in accents])
    chosen = partition(accent, ACCENTS, shares, seed, "espeak-ng's voices")
    keys = ("label", "speaker", "accent", "speed", "pitch")
    columns: dict[str, list[Any]] = {key: [] for key in keys}
    rows: dict[str, Index] = {}
    for split, mine in chosen.items():
        share = shares.get(split, 1 - sum(shares.values()))
        count = int(source.clips * share + 0.5)
        if min(count, max_examples or count) < len(DIGITS):
            raise PipelineError(
                f"audio.clips={source.clips} or profile.max_examples={max_examples} leaves split "
                f"{split} fewer clips than there are digits; raise it"
            )
        # whole rounds of all voices: each speaks as often as the others, give or take one
        order = np.concatenate([random.permutation(mine) for _ in range(-(-count // len(mine)))])
        start = len(columns["label"])
        count = min(count, max_examples or count)
        rows[split] = np.arange(start, start + count)
        columns["label"] += [number % len(DIGITS) for number in range(count)]
        columns["speaker"] += [names[voice] for voice in order[:count]]
        columns["accent"] += [accents[voice] for voice in order[:count]]
        columns["speed"] += random.integers(*_SPEEDS, count, endpoint=True).tolist()
        columns["pitch"] += random.integers(*_PITCHES, count, endpoint=True).tolist()
    wanted = [
        (DIGITS[label], speaker, speed, pitch)
        for label, speaker, speed, pitch in zip(
            columns["label"], columns["speaker"], columns["speed"], columns["pitch"], strict=True
        )
    ]
    # a fixed number of clips per process: the bytes don't depend on how many run at once
    parts = [wanted[start : start + _PER_PROCESS] for start in range(0, len(wanted), _PER_PROCESS)]
    with ThreadPoolExecutor() as threads:
        spoken = threads.map(lambda part: _speak(part, source.sample_rate), parts)
        files = [file for part in spoken for file in part]
    return pa.table({"audio": media(pa.chunked_array([files], pa.binary())), **columns}), rows


def _speak(wanted: Sequence[tuple[str, str, int, int]], rate: int) -> list[bytes]:
    """WAV files of (text, voice, speed, pitch), from a process of its own."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", "pipeline.data.espeak"],
            input=json.dumps(wanted).encode(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": _ROOT},
            timeout=300,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise PipelineError(
            f"espeak-ng failed with status {error.returncode} ({said[-1] if said else 'no message'}"
            "); install the locked packages again"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PipelineError("espeak-ng did not answer in 300 s; try again") from error
    content = process.stdout
    (before,) = struct.unpack_from("<i", content)
    clips, place = [], 4
    while place < len(content):
        (count,) = struct.unpack_from("<i", content, place)
        clips.append(np.frombuffer(content, "<i2", count, place + 4))
        place += 4 + 2 * count
    return [write_wav(clip, rate) for clip in resample(clips, before, rate)]


def _folder(
    source: AudioSource, shares: dict[str, float], seed: int
) -> tuple[pa.Table, list[str], dict[str, Index]]:
    """A table of clips, the classes, and the rows of each split; speakers are shared out."""
    found = labelled_files(source.folder, "audio.folder", frozenset({".wav"}))
    where = f"audio.folder: {source.folder}"
    classes, labels = numbered([label for _, label in found], where)
    read = [read_wav(path.read_bytes(), str(path)) for path, _ in found]
    clips: list[Samples] = [clip for clip, _ in read]
    for rate in sorted({rate for _, rate in read}):
        mine = [i for i, (_, before) in enumerate(read) if before == rate]
        same = resample([clips[i] for i in mine], rate, source.sample_rate)
        for i, clip in zip(mine, same, strict=True):
            clips[i] = clip
    speakers = [path.stem.partition("_")[0] for path, _ in found]
    names, speaker = np.unique(speakers, return_inverse=True)
    parts = partition(np.zeros(len(names), np.int64), ["speaker"], shares, seed, where)
    random = np.random.default_rng([seed, 1])
    rows = {
        split: random.permutation(np.flatnonzero(np.isin(speaker, part)))
        for split, part in parts.items()
    }
    files = [write_wav(clip, source.sample_rate) for clip in clips]
    table = pa.table(
        {
            "audio": media(pa.chunked_array([files], pa.binary())),
            "label": labels,
            "speaker": speakers,
        }
    )
    return table, classes, rows
