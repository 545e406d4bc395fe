"""What sources are read from, packages and folders, and how rows get into splits without leaks."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.files import in_dvc_cache, lies_in

Index = NDArray[np.int64]
Dropped = dict[str, list[tuple[int, int]]]
"""Rows that are left out, by the reason, each with the first row that it equals."""


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, without running its code; None if it is not installed."""
    # find_spec runs none as long as the name has no dot
    spec = find_spec(package) if package.isidentifier() else None
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def package_file(package: str, path: str) -> Path:
    """Path of a data file or folder that an installed package carries.

    Raises:
        PipelineError: the package or the file is not there.
    """
    folder = package_folder(package)
    if folder is None:
        raise PipelineError(
            f"the package {package} is not installed; install the locked packages again"
        )
    found = folder / path
    if not found.exists():
        raise PipelineError(
            f"{path} is missing from the package {package}; install the locked packages again"
        )
    return found


def refuse_leaving(path: Path, root: Path, key: str) -> None:
    """Make sure that no link on the way from `root` to `path` leaves it; DVC's cache counts as in.

    Args:
        path: what will be read.
        root: its folder, or the one above that a setting names.
        key: that setting, for the message.

    Raises:
        PipelineError: a link does (a data set must not be able to name other files of the machine).
    """
    if not lies_in(path, root) and not in_dvc_cache(path):
        raise PipelineError(f"{key}: {path} leads out of {root}; put the file itself there")


def visible(folder: Path, root: Path, key: str) -> list[Path]:
    """What is in a folder, sorted by name; hidden entries are passed over.

    Raises:
        PipelineError: a name can't be printed, or a link leaves `root`, which `key` names.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in paths:
        if not path.name.isprintable():
            raise PipelineError(f"{key}: {str(path)!a} has unprintable characters; rename it")
        refuse_leaving(path, root, key)
    return paths


def below(folder: Path, root: Path, key: str) -> Iterator[Path]:
    """The files in a folder and in the folders below it, by name; errors are those of `visible`."""
    for path in visible(folder, root, key):
        if path.is_dir():
            yield from below(path, root, key)
        else:
            yield path


def distinct(keys: Iterable[bytes], labels: Index) -> tuple[Index, Dropped]:
    """Rows to keep so that no example is there twice, and which were dropped and why.

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
    dropped: Dropped = {"repeats": [], "conflicts": []}
    for row in sorted(np.flatnonzero(~kept).tolist(), key=lambda row: (same_as[row], row)):
        dropped["conflicts" if conflict[row] else "repeats"].append((row, int(same_as[row])))
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
