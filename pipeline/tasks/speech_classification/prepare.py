"""Spoken digits, synthesised or from folders, cut into splits of different speakers."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.classification.data.labels import cap, check, labelled_files, numbered
from pipeline.errors import PipelineError
from pipeline.prepared import Prepared, dataset, file_identities, media
from pipeline.sounds.wav import Samples, read_wav, resample, write_wav
from pipeline.sources import Index, distinct, package_file, partition
from pipeline.tasks.speech_classification.settings import Facts, Source

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
MOST_SPEAKERS = 0.9
"""Speakers of a folder as a share of its files, at most: with more, what tells them is no name."""
_SPEAKER = str(Path(__file__).with_name("espeak.py"))


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Synthesise or read clips and cut them into splits of different speakers.

    Columns are `audio` (16-bit mono WAV), `label`, `speaker` (unless `source.speaker` is null), and
    of synthesised clips `accent`, `speed` and `pitch`.

    Raises:
        PipelineError: the source is missing, empty or corrupt, or too small for its splits.
    """
    import datasets

    shares = {"validation": source.validation, "test": source.test}
    features: dict[str, Any] = {}
    names = None
    if source.kind == "espeak":
        files, columns, rows = _espeak(source, shares, seed, limit)
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
        files, columns, classes, names = _folder(source)
        about = {"source": f"folder {Path(source.folder or '').name}"}
        if source.speaker is None:
            about["source"] += ", split at random: a voice may be in several splits"
            print(f"audio.speaker is null: {about['source']}")
    table = pa.table({"audio": media(pa.chunked_array([files], pa.binary())), **columns})
    labels, identities = table["label"].to_numpy(), file_identities("audio")
    kept, dropped = distinct(identities(table), labels)
    if source.kind == "folder":
        where = f"audio.folder: {source.folder}"
        if source.speaker is None:
            parts = partition(labels[kept], classes, shares, seed, where)
            rows = {split: kept[part] for split, part in parts.items()}
        else:
            rows = _by_speaker(columns["speaker"], shares, seed, where)
    features = {
        "audio": datasets.Audio(sampling_rate=source.sample_rate, decode=False),
        "label": datasets.ClassLabel(names=classes),
        **({"speaker": datasets.Value("string")} if "speaker" in columns else {}),
        **features,
    }
    splits: Any = {}
    for split, part in rows.items():
        part = cap(part[np.isin(part, kept)], labels, limit)
        check(labels[part], classes, f"{source.name}, split {split}")
        splits[split] = dataset(table, features, part)
    facts = Facts(classes=classes, sample_rate=source.sample_rate)
    group = "speaker" if "speaker" in columns else None
    about = {"name": source.name, **about}
    return Prepared(about, facts, dropped, splits, identities, group, names)


def voices() -> list[tuple[str, str]]:
    """(name, accent) of every English voice of espeak-ng: each accent in each of its variants."""
    folder = package_file("espeakng_loader", "espeak-ng-data/voices/!v")
    variants = ["", *sorted(f"+{path.name}" for path in folder.iterdir())]
    return [(accent + variant, accent) for accent in ACCENTS for variant in variants]


def _espeak(
    source: Source, shares: dict[str, float], seed: int, limit: int | None
) -> tuple[list[bytes], dict[str, list[Any]], dict[str, Index]]:
    """Clips, what is known of each, the rows of each split: other voices, of every accent."""
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
        if min(count, limit or count) < len(DIGITS):
            raise PipelineError(
                f"audio.clips={source.clips} or profile.max_examples={limit} leaves split "
                f"{split} fewer clips than there are digits; raise it"
            )
        # whole rounds of all voices: each speaks as often as the others, give or take one
        order = np.concatenate([random.permutation(mine) for _ in range(-(-count // len(mine)))])
        start = len(columns["label"])
        count = min(count, limit or count)
        rows[split] = np.arange(start, start + count)
        columns["label"] += [number % len(DIGITS) for number in range(count)]
        columns["speaker"] += [names[voice] for voice in order[:count]]
        columns["accent"] += [accents[voice] for voice in order[:count]]
        columns["speed"] += random.integers(*_SPEEDS, count, endpoint=True).tolist()
        columns["pitch"] += random.integers(*_PITCHES, count, endpoint=True).tolist()
    words = [DIGITS[label] for label in columns["label"]]
    wanted = list(zip(words, *(columns[key] for key in ("speaker", "speed", "pitch")), strict=True))
    # a fixed number of clips per process: the bytes don't depend on how many run at once
    parts = [wanted[start : start + _PER_PROCESS] for start in range(0, len(wanted), _PER_PROCESS)]
    with ThreadPoolExecutor() as threads:
        spoken = threads.map(lambda part: _speak(part, source.sample_rate), parts)
        files = [file for part in spoken for file in part]
    return files, columns, rows


def _speak(wanted: Sequence[tuple[str, str, int, int]], rate: int) -> list[bytes]:
    """WAV files of (text, voice, speed, pitch), from a process of its own."""
    try:
        process = subprocess.run(
            [sys.executable, _SPEAKER],
            input=json.dumps(wanted).encode(),
            capture_output=True,
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


def _folder(source: Source) -> tuple[list[bytes], dict[str, Any], list[str], list[str]]:
    """Clips, what is known of each, the classes, what the rows are called."""
    found = labelled_files(source.folder, "audio.folder", frozenset({".wav"}), nested=True)
    classes, labels = numbered([label for _, label in found], f"audio.folder: {source.folder}")
    columns: dict[str, Any] = {"label": labels}
    names = [path.relative_to(source.folder or "").as_posix() for path, _ in found]
    if source.speaker is not None:
        columns["speaker"] = _speakers([name.partition("/")[2] for name in names], source.speaker)
    read = [read_wav(path.read_bytes(), str(path)) for path, _ in found]
    clips: list[Samples] = [clip for clip, _ in read]
    for rate in sorted({rate for _, rate in read}):
        mine = [i for i, (_, before) in enumerate(read) if before == rate]
        same = resample([clips[i] for i in mine], rate, source.sample_rate)
        for i, clip in zip(mine, same, strict=True):
            clips[i] = clip
    return [write_wav(clip, source.sample_rate) for clip in clips], columns, classes, names


def _speakers(paths: Sequence[str], expression: str) -> list[str]:
    """Who speaks in each file, found in its path below the folder of its class.

    Raises:
        PipelineError: the expression does not tell, or tells nearly every file's from all others'.
    """
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise PipelineError(
            f"audio.speaker: {expression!r} is no regular expression ({error}); correct it"
        ) from error
    if pattern.groups != 1:
        raise PipelineError(
            f"audio.speaker: {expression!r} has {pattern.groups} groups; put (…) once, around what "
            "is the speaker's name"
        )
    matches = [pattern.search(path) for path in paths]
    speakers = [match[1] if match else None for match in matches]
    advice = (
        "correct the expression, or set audio.speaker to null where nothing tells the speakers: "
        "the splits are then drawn at random"
    )
    if unknown := [path for path, name in zip(paths, speakers, strict=True) if not name]:
        raise PipelineError(
            f"audio.speaker: {expression!r} finds no speaker in {len(unknown)} of {len(paths)} "
            f"files (the first is {unknown[0]}); {advice}"
        )
    names = [name for name in speakers if name]
    if (count := len(set(names))) > MOST_SPEAKERS * len(paths):
        raise PipelineError(
            f"audio.speaker: {expression!r} finds {count} speakers in {len(paths)} files "
            f"({names[0]!r} in {paths[0]}), so nearly every file has its own; {advice}"
        )
    return names


def _by_speaker(
    speakers: list[str], shares: dict[str, float], seed: int, where: str
) -> dict[str, Index]:
    """The rows of each split, of other speakers."""
    names, speaker = np.unique(speakers, return_inverse=True)
    if len(names) <= len(shares):
        raise PipelineError(
            f"{where}: has {len(names)} speaker{'s' if len(names) > 1 else ''} "
            f"({', '.join(names)}), too few for the splits train, {', '.join(shares)}; add others, "
            "or set audio.speaker to null: a voice may then be in several splits"
        )
    parts = partition(np.zeros(len(names), np.int64), ["speaker"], shares, seed, where)
    random = np.random.default_rng([seed, 1])
    return {
        split: random.permutation(np.flatnonzero(np.isin(speaker, part)))
        for split, part in parts.items()
    }
