"""Documents and chats from a package or a folder, cut into splits."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import Columns
from pipeline.errors import PipelineError
from pipeline.prepared import SPLITS, Prepared, dataset, text_identities
from pipeline.sources import Told, below, deal, distinct
from pipeline.tasks.language_modeling.settings import Facts, Source
from pipeline.texts import bpe
from pipeline.texts.chats import Document, document, plain
from pipeline.texts.tables import movie_reviews

LEARNT_FROM = 4000
"""Training documents that the byte-pair encoding learns from, at most."""
COLUMNS = ("text", "messages", "prompt", "answer")
SHOWN = 20
"""Faults that are listed, at most."""


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Shuffle the documents and cut them into splits: a column `text`.

    Where there are chats, a column `messages` has the role and content of each, or null; `group`
    is a column too.

    Raises:
        PipelineError: the source is missing, empty or malformed, or too small for its splits.
    """
    import datasets

    found: Sequence[Document]
    further = Columns("language", source.folder or source.kind, source.group, COLUMNS)
    if source.kind == "movie_reviews":
        reviews, about = movie_reviews("imdb")
        found = [text.strip() for text, _ in reviews]
    else:
        if source.folder is None:
            raise PipelineError("language.folder is null; name a folder with texts")
        found = _folder(Path(source.folder), further)
        about = {"source": f"folder {Path(source.folder).name}"}
        if len(found) < len(SPLITS):
            raise PipelineError(
                f"language.folder: {source.folder} has {len(found)} documents; each split needs one"
            )
    told = further.told()
    features = {"text": datasets.Value("string")}
    columns: dict[str, Any] = {"text": [plain(one) for one in found]}
    if not all(isinstance(one, str) for one in found):
        said = {"role": datasets.Value("string"), "content": datasets.Value("string")}
        features["messages"] = datasets.List(said)
        columns["messages"] = [None if isinstance(one, str) else one for one in found]
    if told.group is not None:
        features[told.group] = datasets.Value("string")
        columns[told.group] = told.groups
    table = pa.table(columns)
    order, none = told.order(len(table)), np.zeros(len(table), np.int64)
    kept, dropped = distinct(text_identities(table), none, order)
    if told == Told():
        order = np.random.default_rng(seed).permutation(kept)
        ends = np.cumsum([source.test, source.validation]) * len(order)
        test, validation, train = np.split(order, np.ceil(ends).astype(int))
        parts = {"train": train, "validation": validation, "test": test}
    else:
        shares = {"validation": source.validation, "test": source.test}
        where = f"language source {source.name}"
        parts = deal(kept, none, ["document"], shares, seed, where, told)
    rows = {split: parts[split][:limit] for split in SPLITS}
    learnt = table["text"].take(pa.array(rows["train"][:LEARNT_FROM])).to_pylist()
    return Prepared(
        about={"name": source.name, **about},
        facts=Facts(merges=bpe.learn(learnt, source.vocabulary)),
        dropped={"repeats": dropped["repeats"]},
        splits={split: dataset(table, features, rows[split]) for split in SPLITS},
        identities=text_identities,
        group=told.group,
    )


def _folder(root: Path, further: Columns) -> list[Document]:
    """The documents in a folder and below it, by the names of the files; `further` takes the rows.

    Raises:
        PipelineError: how many faults there are, and the first of them with file and row.
    """
    faults, found = list[str](), list[Document]()
    try:
        paths = list(below(root, root, "language.folder"))
    except OSError as error:
        raise PipelineError(
            f"language.folder: {error.filename} can't be read ({error.strerror}); put your texts "
            "there or correct the setting"
        ) from error
    for path in paths:
        for where, row in _rows(path, further, faults):
            try:
                found.append(document(row))
                further.add(where, row)
            except ValueError as error:
                faults.append(f"{where}: {error}")
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        count = f"{len(faults):,} faults" if len(faults) > 1 else "1 fault"
        listed = "; ".join(faults[:SHOWN])
        raise PipelineError(f"language.folder: {root} has {count}: {listed}{more}; mend them all")
    return found


def _rows(path: Path, further: Columns, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a file, and where each stands."""
    try:
        if path.suffix == ".parquet":
            yield from _table(path, further, faults)
        elif path.suffix == ".txt":
            yield f"{path}, line 1", {"text": _read(path)}
        elif path.suffix == ".jsonl":
            for number, line in enumerate(_read(path).split("\n"), 1):
                where = f"{path}, line {number}"
                try:
                    if line.strip():
                        yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    faults.append(f"{where}: is no JSON ({error})")
        else:
            faults.append(f"{path} is no .txt, .jsonl or .parquet file")
    except UnicodeDecodeError as error:
        at = error.object[: error.start].count(b"\n") + 1
        faults.append(f"{path}, line {at}: is not UTF-8 ({error.reason})")
    except (pa.ArrowException, OSError) as error:
        faults.append(f"{path} can't be read ({str(error).splitlines()[0]})")


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _table(path: Path, further: Columns, faults: list[str]) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        further.see(names)
        columns = [name for name in names if name in COLUMNS or further.wants(name)]
        if not {*columns} & {*COLUMNS}:
            faults.append(f"{path} has none of the columns {', '.join(COLUMNS)}")
            return
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
