"""What sources are read from, packages and folders, and how rows get into splits without leaks."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.files import in_dvc_cache, lies_in

Index = NDArray[np.int64]
Dropped = dict[str, list[tuple[int, int]]]
"""Rows that are left out, by the reason, each with the first row that it equals."""

SPLIT_OF = {
    spelling: split
    for split, spellings in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev", "development"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for spelling in spellings
}
"""The usual spellings of splits, whatever their case."""
STEPS = 10_000
"""How often a group is put into a split, over all trials; each group once at least."""


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


def spelt_alike(counts: Mapping[str, int]) -> str | None:
    """Asks whether two class names are one, if they differ in case, blanks or coding alone.

    `counts` has the rows, or whatever the user counts, of each name.
    """
    first: dict[str, str] = {}
    for name in sorted(counts):
        key = unicodedata.normalize("NFC", " ".join(name.split())).lower()
        other = first.setdefault(key, name)
        if other != name:
            return (
                f"{other!r} ({counts[other]:,} times) and {name!r} ({counts[name]:,} times): are "
                "they one class? give them one spelling, or names that can be told apart"
            )
    return None


def distinct(
    keys: Sequence[bytes], labels: Index, order: Index | None = None
) -> tuple[Index, Dropped]:
    """Rows to keep so that no example is there twice, and which were dropped and why.

    Of equal examples with one label the first stays, of the rows in `order` if it is given; of
    equal examples with different labels none does, for none of the labels can be trusted.
    """
    first: dict[bytes, int] = {}
    conflicting: set[int] = set()
    same_as = np.empty(len(labels), dtype=np.int64)
    for row in range(len(labels)) if order is None else order.tolist():
        key = hashlib.blake2b(keys[row], digest_size=16).digest()
        same_as[row] = first.setdefault(key, row)
        if labels[row] != labels[same_as[row]]:
            conflicting.add(int(same_as[row]))
    conflict = np.isin(same_as, np.fromiter(conflicting, np.int64))
    kept = ~conflict & (same_as == np.arange(len(labels)))
    dropped: Dropped = {"repeats": [], "conflicts": []}
    for row in sorted(np.flatnonzero(~kept).tolist(), key=lambda row: (same_as[row], row)):
        dropped["conflicts" if conflict[row] else "repeats"].append((row, int(same_as[row])))
    return np.flatnonzero(kept), dropped


class Told(NamedTuple):
    """What a source says of its rows.

    Attributes:
        splits: `train`, `validation` or `test` of each row; None where the source has no splits.
        groups: of each row a value that must not be in two splits; None without such a column.
        group: what the values are: the name of the column.
    """

    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    group: str | None = None

    def order(self, count: int) -> Index:
        """The rows, those first that stay where an equal one stands in another split, too."""
        ranks = {"test": 0, "validation": 1, "train": 2}
        of_rows = np.zeros(count) if self.splits is None else [ranks[one] for one in self.splits]
        return np.argsort(of_rows, kind="stable")


def deal(
    kept: Index,
    labels: Index,
    classes: Sequence[str],
    shares: dict[str, float],
    seed: int,
    where: str,
    told: Told,
) -> dict[str, Index]:
    """Deal rows to the splits: each to its own if the source has some, groups as a whole.

    A split that the source lacks is cut from `train`; what was done is printed.

    Args:
        kept: the rows, int64 [n].
        labels: of all rows, those that are not kept too; so is `told`.
        classes: their names.
        shares: of the splits beside `train`; not looked at for those that the source has.
        seed: decides what is cut, and the order of the rows of each split.
        where: the source, for messages.
        told: what it says of its rows.

    Raises:
        PipelineError: no row is marked `train`; there are too few rows or groups for the splits.
    """
    own: dict[str, Index] = {}
    if told.splits is not None:
        random, marked = np.random.default_rng([seed, 2]), np.array(told.splits)
        for split in ("train", *shares):
            if (marked == split).any():
                own[split] = random.permutation(kept[marked[kept] == split])
        if "train" not in own:
            raise PipelineError(f"{where}: no row is marked train; mark those to learn from")
        counts = [
            f"{len(rows):,} of {(marked == split).sum():,} {split} rows"
            for split, rows in own.items()
        ]
        said = f"{where}: its own splits are kept, less repeats: {', '.join(counts)}"
        for split, share in shares.items():
            said += f"; {split}: {share:g} " + (
                "is not used" if split in own else "is cut from train"
            )
        print(said)
    shares = {split: share for split, share in shares.items() if split not in own}
    free = own.pop("train", kept)
    if told.groups is None or not shares:
        parts = partition(labels[free], classes, shares, seed, where)
    else:
        groups = [told.groups[row] for row in free]
        name = str(told.group)
        parts = partition_groups(labels[free], classes, groups, name, shares, seed, where)
    return {split: free[part] for split, part in parts.items()} | own


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


def partition_groups(
    labels: Index,
    classes: Sequence[str],
    groups: Sequence[str],
    group: str,
    shares: dict[str, float],
    seed: int,
    where: str,
) -> dict[str, Index]:
    """As `partition`, but rows of one group stay together; prints how near that comes.

    Of many trials the one is taken in which the fewest splits lack a class, and among those the one
    whose shares of each class are nearest (by chi-square) to the wanted ones. scikit-learn's
    StratifiedGroupKFold makes parts of equal size, and needs as many groups as parts.

    Args:
        labels: int64 [n].
        classes: their names.
        groups: of each row.
        group: what they are, for messages.
        shares: of the splits beside `train`.
        seed: decides which trials are made, and the order of the rows.
        where: the source, for messages.

    Raises:
        PipelineError: there are fewer groups than splits.
    """
    numbers: dict[str, int] = {}
    of_row = np.array([numbers.setdefault(name, len(numbers)) for name in groups], np.int64)
    splits, count = ("train", *shares), len(numbers)
    if count < len(splits):
        raise PipelineError(
            f"{where}: has {count} {group} ({', '.join(map(repr, numbers))}), too few for the "
            f"splits {', '.join(splits)}; add rows of others"
        )
    known, of_class = np.unique(labels, return_inverse=True)
    rows = np.zeros((count, len(known)))
    np.add.at(rows, (of_row, of_class), 1)
    parts, holds = rows / rows.sum(axis=0), rows > 0
    wanted = np.array([1 - sum(shares.values()), *shares.values()])
    random = np.random.default_rng(seed)
    best, chosen = (np.inf, np.inf), np.zeros(count, np.int64)
    for _ in range(max(1, STEPS // count)):
        order = random.permutation(count)
        # the large ones first, in any order among those of about one size
        order = order[np.argsort(-np.frexp(rows[order].sum(axis=1))[1], kind="stable")]
        off, trial = -np.ones((len(splits), len(known))), np.zeros(count, np.int64)
        lacks, left = np.ones_like(off, bool), holds.sum(axis=0)
        for one in order:
            # how much chi-square grows with the group in each split
            grows = 2 * off @ parts[one] + parts[one] @ parts[one] / wanted
            scarce = holds[one] & (left <= lacks.sum(axis=0))
            if scarce.any():
                grows[~lacks[:, scarce].any(axis=1)] = np.inf
            # sums may differ in the last bit between processors
            to = trial[one] = np.round(grows * count, 9).argmin()
            off[to] += parts[one] / wanted[to]
            lacks[to] &= ~holds[one]
            left -= holds[one]
        found = (lacks.sum(), round(float(wanted @ off**2 @ np.ones(len(known))), 9))
        if found < best:
            best, chosen = found, trial
    cut = {split: chosen[of_row] == number for number, split in enumerate(splits)}
    told = []
    for split, share in shares.items():
        mine = of_class[cut[split]]
        said = f"{split} has {len(mine) / len(labels):.1%} of the rows (wanted {share:.1%})"
        if len(known) > 1 and len(mine):
            here, all_in_all = (
                np.bincount(some, minlength=len(known)) / len(some) for some in (mine, of_class)
            )
            worst = int(np.abs(here - all_in_all).argmax())
            said += f", {classes[known[worst]]!r} is {here[worst]:.1%} of them "
            said += f"(of all: {all_in_all[worst]:.1%})"
        told.append(said)
    print(f"{where}: split by {group}, {count:,} groups: {'; '.join(told)}")
    return {split: random.permutation(np.flatnonzero(mine)) for split, mine in cut.items()}
