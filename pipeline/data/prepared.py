"""The prepared data set: three Parquet files and `dataset.json`, the same for every modality.

The files are written with Hugging Face `datasets`, so `load_dataset("parquet", …)` shows images,
class names and all. They are read with pyarrow alone: importing `datasets` costs a second.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError
from pipeline.files import digest, new_directory, read_json, write_json

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CARD = "dataset.json"

Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)


class Split(_Model):
    """One Parquet file."""

    rows: Annotated[int, Field(gt=0)]
    per_class: dict[str, Count]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Card(_Model):
    """What `dataset.json` says."""

    task: Literal["image", "text", "audio"]
    name: str
    source: str
    """Where the examples come from."""
    licence: str
    citation: str
    classes: Annotated[list[str], Field(min_length=2)]
    """Class names; a label is an index into them."""
    seed: int
    """Seed of the splits."""
    dropped: dict[str, Count]
    """Examples left out: `repeats` of another one, `conflicts` between labels of equal ones."""
    splits: dict[SplitName, Split]
    channels: Literal[0, 1, 3] = 0
    """Of an image, as are `height` and `width` in pixels; 0 for other tasks."""
    height: Count = 0
    width: Count = 0
    sample_rate: Count = 0
    """Of audio, in Hz; 0 for other tasks."""

    @model_validator(mode="after")
    def _complete(self) -> "Card":
        needed = {"image": ("channels", "height", "width"), "audio": ("sample_rate",)}
        for name in needed.get(self.task, ()):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing")
        return self

    @property
    def digest(self) -> str:
        """Hex digest of the data: classes and the bytes of all splits."""
        parts = [*self.classes, *(f"{split} {self.splits[split].sha256}" for split in SPLITS)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def identities(table: pa.Table) -> list[bytes]:
    """What makes an example the same as another: its bytes; of a text, its words whatever the case.

    Args:
        table: has a column `image` or `audio` (struct with `bytes`) or `text` (string).

    Raises:
        PipelineError: an example has no content.
    """
    if "text" in table.column_names:
        column = table["text"]
    else:
        column = contents(table["image" if "image" in table.column_names else "audio"])
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise PipelineError(f"row {row} of {table.num_rows}: has no content; remove it")
    if "text" in table.column_names:
        return [" ".join(text.split()).casefold().encode() for text in column.to_pylist()]
    files: list[bytes] = column.to_pylist()
    return files


def media(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """Binary files as the column that `datasets.Image` and `Audio` store, without paths."""
    names = ["bytes", "path"]
    return pa.chunked_array(
        [
            pa.StructArray.from_arrays([chunk, pa.nulls(len(chunk), pa.string())], names)
            for chunk in files.chunks
        ]
    )


def contents(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The files in such a column, binary; a path in it is never followed."""
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], pa.binary())


def dataset(table: pa.Table, features: dict[str, Any], rows: NDArray[np.int64]) -> Any:
    """The given rows as a `datasets.Dataset` with these features."""
    import datasets

    schema = datasets.Features(features)
    return datasets.Dataset(
        table.take(pa.array(rows)).cast(schema.arrow_schema),
        info=datasets.DatasetInfo(features=schema),
    )


def write(folder: Path, card: dict[str, Any], splits: dict[str, Any]) -> None:
    """Write a prepared data set: all of it, or nothing.

    Args:
        folder: takes the place of an earlier folder.
        card: the fields of `Card` but `splits`.
        splits: a `datasets.Dataset` for each of `SPLITS`, with a column `label`.

    Raises:
        PipelineError: a split lacks a class; an example or a speaker is in two splits; the folder
            can't be written.
    """
    import datasets

    tables = {split: splits[split].with_format("arrow")[:] for split in SPLITS}
    _refuse_leaks(tables)
    datasets.disable_progress_bars()
    described = {}
    with new_directory(folder, "dataset.json") as temporary:
        for split in SPLITS:
            labels = tables[split]["label"].to_numpy()
            per_class = _per_class(labels, card["classes"], f"{card['name']}, split {split}")
            path = temporary / f"{split}.parquet"
            splits[split].to_parquet(path)
            described[split] = {
                "rows": len(labels),
                "per_class": per_class,
                "sha256": digest(path, "sha256"),
            }
        Card.model_validate({**card, "splits": described})
        write_json(temporary / CARD, {**card, "splits": described})


def read_card(folder: Path) -> Card:
    """What a prepared data set says about itself.

    Raises:
        PipelineError: `dataset.json` is missing or malformed.
    """
    path = folder / CARD
    value = read_json(path, made_by=_stage(folder.name))
    try:
        card = Card.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PipelineError(
            f"{path}: {key}: {first['msg']}; run `dvc repro -f {_stage(folder.name)}`"
        ) from error
    if missing := [split for split in SPLITS if split not in card.splits]:
        raise PipelineError(
            f"{path}: splits.{missing[0]} is missing; run `dvc repro -f {_stage(folder.name)}`"
        )
    return card


def read_split(folder: Path, split: SplitName, task: str) -> tuple[Card, pa.Table]:
    """The card, and the rows of one split as they were written.

    Arguments and errors are those of `open_split`.
    """
    card, file, _ = open_split(folder, split, task)
    return card, pa.Table.from_batches(rows(folder / f"{split}.parquet", file), file.schema_arrow)


def open_split(
    folder: Path, split: SplitName, task: str
) -> tuple[Card, pq.ParquetFile, NDArray[np.int64]]:
    """The card, the file of one split, checked but mostly unread, and its labels.

    Args:
        folder: a prepared data set.
        split: one of `SPLITS`.
        task: what the caller can read: `image`, `text` or `audio`.

    Returns:
        The card, the file, for `rows`, and its column `label`, int64 in [0, classes).

    Raises:
        PipelineError: a file is missing, is not the one the card describes (truncated, edited),
            is of another task, is empty, or lacks a class.
    """
    card = read_card(folder)
    path = folder / f"{split}.parquet"
    again = f"run `dvc repro -f {_stage(card.task)}`"
    if card.task != task:
        raise PipelineError(
            f"{folder / CARD}: task is {card.task}, not {task}; name another folder"
        )
    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; {again}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{path} can't be read ({error}); {again}") from error
    if hashlib.sha256(content).hexdigest() != card.splits[split].sha256:
        raise PipelineError(
            f"{path} is not the file that {CARD} describes (truncated or edited: its sha256 "
            f"differs); {again}"
        )
    try:
        opened = pq.ParquetFile(pa.BufferReader(content))
        labels = opened.read(columns=["label"])["label"].to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PipelineError(f"{path} can't be read ({_line(error)}); {again}") from error
    _per_class(labels, card.classes, str(path))
    return card, opened, labels


def rows(
    path: Path, file: pq.ParquetFile, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of an opened split in their order, some at a time; all columns, or only these.

    Raises:
        PipelineError: the file's content is damaged; names `path`.
    """
    try:
        yield from file.iter_batches(batch_size=4096, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} can't be read ({_line(error)}); prepare it again") from error


def _per_class(labels: NDArray[Any], classes: list[str], where: str) -> dict[str, int]:
    if len(labels) == 0:
        raise PipelineError(f"{where}: is empty; give it examples of every class")
    if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= len(classes):
        raise PipelineError(f"{where}: has labels outside 0–{len(classes) - 1}; prepare it again")
    counts = np.bincount(labels, minlength=len(classes))
    if (counts == 0).any():
        raise PipelineError(
            f"{where}: has no example of class {classes[int(counts.argmin())]!r}; give it more "
            "examples or larger shares"
        )
    return dict(zip(classes, counts.tolist(), strict=True))


def _refuse_leaks(tables: dict[SplitName, pa.Table]) -> None:
    seen: dict[bytes, tuple[str, int]] = {}
    spoken: dict[str, str] = {}
    for split in SPLITS:
        table = tables[split]
        for row, key in enumerate(identities(table)):
            other, at = seen.setdefault(hashlib.blake2b(key, digest_size=16).digest(), (split, row))
            if other != split:
                raise PipelineError(
                    f"row {at} of split {other} and row {row} of split {split} are the same "
                    "example; drop one of them"
                )
        for speaker in set(table["speaker"].to_pylist()) if "speaker" in table.column_names else ():
            if spoken.setdefault(speaker, split) != split:
                raise PipelineError(
                    f"speaker {speaker!r} is in the splits {spoken[speaker]} and {split}; keep all "
                    "clips of a speaker in one split"
                )


def _stage(task: str) -> str:
    return f"prepare@{task}" if task in ("image", "text", "audio") else "prepare"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
