"""The rows of a split as a person would look at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.prepared import Card, read_card, read_split
from pipeline.evaluation.metrics import Integers

Task = Literal["image", "text", "audio"]
Raw = Any
"""Images uint8 [n, channels, height, width], texts list[str], or waveforms list of float32 [t]."""


@dataclass(frozen=True)
class Examples:
    """Raw rows of one split.

    Attributes:
        raw: see `Raw`.
        labels: int64 [n].
        columns: further columns by name, such as `speaker` or `accent`, each a list of n.
    """

    raw: Raw
    labels: Integers
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | Integers) -> "Examples":
        """The given rows, in that order."""
        return Examples(
            take(self.raw, rows),
            self.labels[np.asarray(rows, dtype=np.int64)],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
        )

    def sample(self, most: int, seed: int) -> "Examples":
        """At most `most` rows, drawn with the seed and kept in order; all where that is enough."""
        return self.take(sample_rows(len(self), most, seed))


def sample_rows(count: int, most: int, seed: int) -> Integers:
    """At most `most` of `count` row numbers, ascending; the same for the same seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def take(raw: Raw, rows: Sequence[int] | Integers) -> Raw:
    """Some rows of raw examples, of the same kind."""
    if isinstance(raw, np.ndarray):
        return raw[np.asarray(rows, dtype=np.int64)]
    return [raw[int(i)] for i in rows]


def read_examples(folder: Path, split: Literal["train", "validation", "test"]) -> Examples:
    """Read a prepared split for looking at.

    Raises:
        PipelineError: the split is missing, damaged, or has a corrupt image or clip.
    """
    task = read_card(folder).task
    card, table = read_split(folder, split, task)
    path = folder / f"{split}.parquet"
    raw: Raw
    if task == "text":
        raw = table["text"].to_pylist()
    elif task == "audio":
        raw = _waveforms(table, path)
    else:
        raw = _images(table, card, path)
    known = {"text", "audio", "image", "label"}
    columns = {name: table[name].to_pylist() for name in table.column_names if name not in known}
    return Examples(raw, table["label"].to_numpy(), columns)


def _images(table: Any, card: Card, path: Path) -> NDArray[np.uint8]:
    import pyarrow

    from pipeline.data import png

    column = pyarrow.chunked_array(
        [chunk.field("bytes") for chunk in table["image"].chunks], type=pyarrow.binary()
    )
    layout = png.Layout(card.height, card.width, card.channels)
    return png.decode(column, layout, str(path))


def _waveforms(table: Any, path: Path) -> list[NDArray[np.float32]]:
    from pipeline.data.prepared import identities
    from pipeline.data.wav import read_wav

    clips = (read_wav(clip, f"{path}, row {row}")[0] for row, clip in enumerate(identities(table)))
    return [clip.astype(np.float32) / np.float32(32768) for clip in clips]
