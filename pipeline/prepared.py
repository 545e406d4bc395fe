"""The prepared data set: three Parquet files and `dataset.json`, the same for every task.

The files are written with Hugging Face `datasets`, so `load_dataset("parquet", …)` shows images,
class names and all. They are read with pyarrow alone: importing `datasets` costs a second.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from pydantic_core import to_jsonable_python

from pipeline.errors import PipelineError
from pipeline.files import digest, new_directory, read_json, write_json
from pipeline.settings import Sha256
from pipeline.task import find, tasks

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CARD = "dataset.json"


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Split(_Model):
    """One Parquet file."""

    rows: PositiveInt
    sha256: Sha256


class Card(_Model):
    """What `dataset.json` says."""

    task: str
    name: str
    source: str
    """Where the examples come from."""
    licence: str = "not stated"
    citation: str = "not stated"
    seed: int
    """Seed of the splits."""
    dropped: dict[str, NonNegativeInt]
    """Examples left out, and why: `repeats` of another one, say."""
    facts: Any
    """What has to be known to build a model for it: the task's `Facts`."""
    splits: dict[SplitName, Split]

    @property
    def digest(self) -> str:
        """Hex digest of the data: the facts and the bytes of all splits."""
        parts = [self.facts.model_dump_json(), *(self.splits[split].sha256 for split in SPLITS)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Prepared(NamedTuple):
    """What a task's `prepare` makes of a source.

    Attributes:
        about: `name` and `source` of the card; `licence` and `citation`, if they are known.
        facts: the task's `Facts`.
        dropped: the rows of the source that are left out, by the reason, each with the first row
            that it equals.
        splits: a `datasets.Dataset` for each of `SPLITS`.
        identities: what makes a row of a table the same example as another one.
        group: a column whose values (speakers, say) must not be in two splits.
        names: what the rows of the source are called, such as paths; None numbers them.
        frames: rows of the source whose file has several frames, of which the first is taken.
    """

    about: dict[str, str]
    facts: BaseModel
    dropped: dict[str, list[tuple[int, int]]]
    splits: dict[SplitName, Any]
    identities: Callable[[pa.Table], list[bytes]]
    group: str | None = None
    names: Sequence[str] | None = None
    frames: Sequence[int] = ()

    def left_out(self) -> list[dict[str, str]]:
        """What of the source is not in the splits: the `reason`, the `row`, the one it `equals`."""
        told = {**self.dropped, "frames": [(row, row) for row in self.frames]}
        return [
            {
                "reason": reason,
                "row": self._name(row),
                "equals": self._name(first) if first != row else "",
            }
            for reason, rows in told.items()
            for row, first in rows
        ]

    def _name(self, row: int) -> str:
        return self.names[row] if self.names else f"row {row + 1}"


def text_identities(table: pa.Table) -> list[bytes]:
    """The words of each row's `text`, whatever the case: two texts of the same words are one."""
    texts = _whole(table["text"], table).to_pylist()
    return [" ".join(text.split()).casefold().encode() for text in texts]


def file_identities(column: str) -> Callable[[pa.Table], list[bytes]]:
    """The bytes of the files in a column of structs with `bytes`."""
    return lambda table: _whole(contents(table[column]), table).to_pylist()


def _whole(column: pa.ChunkedArray, table: pa.Table) -> pa.ChunkedArray:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise PipelineError(f"row {row} of {table.num_rows}: has no content; remove it")
    return column


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


def write(folder: Path, task: str, prepared: Prepared, seed: int) -> None:
    """Write a prepared data set in the place of an earlier one: all of it, or nothing.

    Raises:
        PipelineError: a split is empty; an example or a group is in two splits; JSON can't hold the
            facts; the folder can't be written.
    """
    import datasets

    tables = {split: prepared.splits[split].with_format("arrow")[:] for split in SPLITS}
    if empty := [split for split in SPLITS if not len(tables[split])]:
        raise PipelineError(
            f"{prepared.about['name']}, split {empty[0]}: is empty; give it more examples"
        )
    _refuse_leaks(tables, prepared)
    facts = _as_json(prepared.facts, task)
    datasets.disable_progress_bars()
    described = {}
    with new_directory(folder, CARD) as temporary:
        for split in SPLITS:
            path = temporary / f"{split}.parquet"
            prepared.splits[split].to_parquet(path)
            described[split] = {"rows": len(tables[split]), "sha256": digest(path, "sha256")}
        dropped = {reason: len(rows) for reason, rows in prepared.dropped.items()}
        told = {"seed": seed, "dropped": dropped, "facts": facts, "splits": described}
        card = Card.model_validate({"task": task, **prepared.about, **told})
        write_json(temporary / CARD, card.model_dump())


def read_card(folder: Path, task: str | None = None) -> Card:
    """What a prepared data set says about itself; `task` is whose data it has to be.

    Raises:
        PipelineError: `dataset.json` is missing or malformed, or of another task.
    """
    path, again = folder / CARD, f"run `dvc repro -f {_stage(folder.name)}`"
    value = read_json(path, made_by=_stage(folder.name))
    try:
        at = ""
        card = Card.model_validate(value)
        facts, at = find(name=card.task).settings.Facts, "facts."
        card = card.model_copy(update={"facts": facts.model_validate_json(json.dumps(card.facts))})
    except ValidationError as error:
        first = error.errors()[0]
        key = at + ".".join(str(part) for part in first["loc"]) or "the file"
        raise PipelineError(f"{path}: {key}: {first['msg']}; {again}") from error
    except LookupError as error:
        raise PipelineError(f"{path}: task: {error}; {again}") from error
    if missing := [split for split in SPLITS if split not in card.splits]:
        raise PipelineError(f"{path}: splits.{missing[0]} is missing; {again}")
    if task not in (None, card.task):
        raise PipelineError(f"{path}: task is {card.task}, not {task}; name another folder")
    return card


def read_split(folder: Path, split: SplitName, task: str) -> tuple[Card, pa.Table]:
    """The card, and the rows of one split as they were written.

    Errors are those of `open_split`.
    """
    card, file = open_split(folder, split, task)
    return card, pa.Table.from_batches(rows(folder / f"{split}.parquet", file), file.schema_arrow)


def first_row(folder: Path) -> dict[str, Any]:
    """The first row of the validation split, which was read before; nothing else of it is."""
    file = pq.ParquetFile(folder / "validation.parquet")
    row: dict[str, Any] = next(file.iter_batches(batch_size=1)).to_pylist()[0]
    return row


def open_split(folder: Path, split: SplitName, task: str) -> tuple[Card, pq.ParquetFile]:
    """The card, and the file of one split, checked but unread; `task` is whose data it has to be.

    Raises:
        PipelineError: a file is missing, is not the one the card describes (truncated, edited), or
            is of another task.
    """
    card = read_card(folder, task)
    path = folder / f"{split}.parquet"
    again = f"run `dvc repro -f {_stage(folder.name)}`"
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
        return card, pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} can't be read ({_line(error)}); {again}") from error


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
        again = f"run `dvc repro -f {_stage(path.parent.name)}`"
        raise PipelineError(f"{path} can't be read ({_line(error)}); {again}") from error


def _as_json(facts: BaseModel, task: str) -> Any:
    """The facts as they are written, from which the same are read."""
    try:
        written = to_jsonable_python(facts)
        read = find(name=task).settings.Facts.model_validate_json(json.dumps(written))
        if read == facts:
            return written
        fault = f"{facts!r:.200} is read back as {read!r:.200}"
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        fault = str(error)
    raise PipelineError(
        f"{find(name=task)}: {CARD} can't hold its Facts ({fault}); make them plain numbers, "
        "texts, lists and mappings"
    )


def _refuse_leaks(tables: dict[SplitName, pa.Table], prepared: Prepared) -> None:
    seen: dict[bytes, tuple[str, int]] = {}
    grouped: dict[str, str] = {}
    for split in SPLITS:
        table, group = tables[split], prepared.group
        for row, key in enumerate(prepared.identities(table)):
            other, at = seen.setdefault(hashlib.blake2b(key, digest_size=16).digest(), (split, row))
            if other != split:
                raise PipelineError(
                    f"row {at} of split {other} and row {row} of split {split} are the same "
                    "example; drop one of them"
                )
        for name in set(table[group].to_pylist()) if group else ():
            if grouped.setdefault(name, split) != split:
                raise PipelineError(
                    f"{group} {name!r} is in the splits {grouped[name]} and {split}; keep all "
                    f"examples of a {group} in one split"
                )


def _stage(folder: str) -> str:
    """The stage that makes the data set in a folder of this name."""
    return f"prepare@{folder}" if folder in [task.about.data for task in tasks()] else "prepare"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
