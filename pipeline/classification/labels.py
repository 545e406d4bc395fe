"""Labelled examples: from a source to splits without leaks, and back; loads no torch."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.sources import visible

Index = NDArray[np.int64]


def labelled_files(
    folder: str | None, key: str, suffixes: frozenset[str]
) -> list[tuple[Path, str]]:
    """Files of a folder that holds one folder per class, with their class, sorted by name.

    Hidden files are passed over. `key` is the setting that named the folder, for the messages.

    Raises:
        PipelineError: no such folder, no class in it, a file of another kind, or a link that
            leaves the folder.
    """
    if folder is None:
        raise PipelineError(f"{key} is null; name the folder that holds one folder per class")
    root = Path(folder)
    if not root.is_dir():
        raise PipelineError(f"{key}: {folder} is not a folder; correct the path")
    files = []
    for place in visible(root, root, key):
        if not place.is_dir():
            raise PipelineError(f"{key}: {place} is in no class; put it in the folder of its class")
        for path in visible(place, root, key):
            if not path.is_file() or path.suffix.lower() not in suffixes:
                raise PipelineError(
                    f"{key}: {path} is not a file of type {', '.join(sorted(suffixes))}; remove it"
                )
            files.append((path, place.name))
    if not files:
        raise PipelineError(f"{key}: {folder} is empty; put one folder of files per class there")
    return files


def numbered(names: Sequence[str], where: str) -> tuple[list[str], Index]:
    """Sorted class names, and the class number of each example.

    Raises:
        PipelineError: there are fewer than two classes.
    """
    classes = sorted(set(names))
    if len(classes) < 2:
        raise PipelineError(f"{where} has {len(classes)} class; a classifier needs at least two")
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], dtype=np.int64)


def distinct(keys: Iterable[bytes], labels: Index) -> tuple[Index, dict[str, int]]:
    """Rows to keep so that no example is there twice, and how many were dropped and why.

    Of equal examples with one label the first stays; of equal examples with different labels none
    does, for none of the labels can be trusted.
    """
    first: dict[bytes, int] = {}
    conflicting: set[int] = set()
    same_as = np.empty(len(labels), dtype=np.int64)
    for row, key in enumerate(keys):
        same_as[row] = first.setdefault(hashlib.blake2b(key, digest_size=16).digest(), row)
        if labels[row] != labels[same_as[row]]:
            conflicting.add(int(same_as[row]))
    conflict = np.isin(same_as, np.fromiter(conflicting, np.int64))
    kept = ~conflict & (same_as == np.arange(len(labels)))
    dropped = {"repeats": int((~kept & ~conflict).sum()), "conflicts": int(conflict.sum())}
    return np.flatnonzero(kept), dropped


def partition(
    labels: Index, classes: Sequence[str], shares: dict[str, float], seed: int, where: str
) -> dict[str, Index]:
    """Shuffle the rows and cut them into `train` and the named shares, class by class.

    Every class gets at least one row in every split.

    Raises:
        PipelineError: a class has fewer rows than there are splits.
    """
    random = np.random.default_rng(seed)
    parts: dict[str, list[Index]] = {"train": [], **{split: [] for split in shares}}
    for number, name in enumerate(classes):
        rows = random.permutation(np.flatnonzero(labels == number))
        if len(rows) < len(parts):
            raise PipelineError(
                f"{where}: {name!r} has {len(rows)} distinct examples, too few for the splits "
                f"{', '.join(parts)}; add examples or remove it"
            )
        start = 0
        for still, (split, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
            size = min(max(1, int(len(rows) * share + 0.5)), len(rows) - start - still)
            parts[split].append(rows[start : start + size])
            start += size
        parts["train"].append(rows[start:])
    return {split: random.permutation(np.concatenate(rows)) for split, rows in parts.items()}


def cap(rows: Index, labels: Index, limit: int | None) -> Index:
    """At most `limit` of `rows`, as evenly over the classes as they allow, in the given order.

    Raises:
        PipelineError: `limit` is smaller than the number of classes.
    """
    if limit is None or len(rows) <= limit:
        return rows
    rank = np.empty(len(rows), dtype=np.int64)
    classes = np.unique(labels[rows])
    if limit < len(classes):
        raise PipelineError(
            f"profile.max_examples={limit} is fewer than the {len(classes)} classes; raise it"
        )
    for number in classes:
        mine = labels[rows] == number
        rank[mine] = np.arange(mine.sum())
    return rows[np.sort(np.lexsort((labels[rows], rank))[:limit])]


def check(labels: NDArray[Any], classes: Sequence[str], where: str) -> Index:
    """The labels of a split; each is an index into `classes`.

    Raises:
        PipelineError: there is none, one is no such index, or a class has no example.
    """
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
    return labels


def column(table: pa.Table, classes: Sequence[str], path: Path) -> Index:
    """The labels in a table read from `path`, int64 [n] in [0, classes).

    Raises:
        PipelineError: see `check`; or there is no such column.
    """
    if "label" not in table.column_names:
        raise PipelineError(f"{path} has no column 'label'; prepare it again")
    return check(table["label"].to_numpy(), classes, str(path))
