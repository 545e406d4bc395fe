"""Labels: from the folders of a source to class numbers, and back; loads no torch."""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.sources import SPLIT_OF, Index, below, spelt_alike, visible

SEPARATORS = (";", "|", ",")
"""What tables put between several labels of one row."""


def labelled_files(
    folder: str | None, key: str, suffixes: frozenset[str], *, nested: bool = False
) -> list[tuple[Path, str]]:
    """Files of a folder that holds one folder per class, with their class, sorted by name.

    Hidden files are passed over. `key` is the setting that named the folder, for the messages.
    With `nested` the folder of a class may hold folders.

    Raises:
        PipelineError: no such folder, no class in it, splits in place of classes, a file of another
            kind, or a link that leaves the folder.
    """
    if folder is None:
        raise PipelineError(f"{key} is null; name the folder that holds one folder per class")
    root = Path(folder)
    if not root.is_dir():
        raise PipelineError(f"{key}: {folder} is not a folder; correct the path")
    files, places = [], visible(root, root, key)
    if places and all(place.name.casefold() in SPLIT_OF for place in places):
        raise PipelineError(
            f"{key}: {folder} has folders of splits ({', '.join(place.name for place in places)}), "
            "which are not read as such; put one folder per class there"
        )
    for place in places:
        if not place.is_dir():
            raise PipelineError(f"{key}: {place} is in no class; put it in the folder of its class")
        for path in (below if nested else visible)(place, root, key):
            if not path.is_file() or path.suffix.lower() not in suffixes:
                raise PipelineError(
                    f"{key}: {path} is not a file of type {', '.join(sorted(suffixes))}; remove it"
                )
            files.append((path, place.name))
    if not files:
        raise PipelineError(f"{key}: {folder} is empty; put one folder of files per class there")
    return files


def numbered(names: Sequence[str], where: str) -> tuple[list[str], Index]:
    """Sorted class names, as they are given, and the class number of each example.

    Raises:
        PipelineError: there are fewer than two classes, two that are spelt alike, or some that are
            several labels in one.
    """
    counts = Counter(names)
    classes = sorted(counts)
    if len(classes) < 2:
        raise PipelineError(f"{where} has {len(classes)} class; a classifier needs at least two")
    if question := spelt_alike(counts):
        raise PipelineError(f"{where}: {question}")
    _refuse_several_in_one(counts, where)
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], dtype=np.int64)


def _refuse_several_in_one(counts: Mapping[str, int], where: str) -> None:
    """Make sure that a class is not what writers of tables put several labels of a row together to.

    That is a label whose parts are all classes themselves, or most classes if a part of them stands
    now here, now there: `news|sport` beside `news|art` has levels, and `Paris, Texas` is a name.
    """
    named = [name for name in counts if _listed(name)]
    together = {sep: [name for name in counts if len(_parts(name, sep)) > 1] for sep in SEPARATORS}
    for sep, found in together.items():
        places: dict[str, set[int]] = {}
        for name in found:
            for place, part in enumerate(_parts(name, sep)):
                places.setdefault(part, set()).add(place)
        named += [name for name in found if all(part in counts for part in _parts(name, sep))]
        if 2 * len(found) > len(counts) and any(len(seen) > 1 for seen in places.values()):
            named += found
    if named:
        raise PipelineError(
            f"{where}: {named[0]!r} ({counts[named[0]]:,} times) is several labels in one, and "
            "multi-label classification is no task here; give each example one label, or spell it "
            "otherwise if it is one class"
        )
    if whole := sorted({name for found in together.values() for name in found}):
        print(
            f"{where}: {', '.join(map(repr, whole[:3]))}{' …' * (len(whole) > 3)}: each is taken "
            "as one class"
        )


def _parts(name: str, separator: str) -> list[str]:
    return [part.strip() for part in name.split(separator) if part.strip()]


def _listed(name: str) -> bool:
    """Whether a label is a list of texts, as JSON or Python writes it."""
    if not (name.startswith("[") and name.endswith("]")):
        return False
    try:
        found = ast.literal_eval(name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(found, list) and any(isinstance(one, str) for one in found)


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


def labels_of(table: pa.Table, classes: Sequence[str], path: Path) -> Index:
    """The labels in a table read from `path`, int64 [n] in [0, classes).

    Raises:
        PipelineError: see `check`; or there is no such column.
    """
    if "label" not in table.column_names:
        raise PipelineError(f"{path} has no column 'label'; prepare it again")
    return check(table["label"].to_numpy(), classes, str(path))
