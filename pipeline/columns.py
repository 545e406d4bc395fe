"""What the columns of a table say of its rows: their split, and what must stay together."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.errors import PipelineError
from pipeline.sources import SPLIT_OF, Told

NAMES = ("split", "subset", "partition", "fold", "set")
"""Columns that say the split of a row, whatever their case; the first of them is that for sure, the
others if a value of theirs is the name of a split."""
GROUPS = {
    "author", "client", "customer", "participant", "patient", "person", "session", "speaker",
    "subject", "user", "writer",
}  # fmt: skip
"""Words in the name of a column whose equal rows are too alike to be in two splits."""


class Columns:
    """The further columns of a table, taken in row by row."""

    def __init__(self, data: str, place: str, group: str | None, learnt: Collection[str]) -> None:
        """A table of no rows yet.

        Args:
            data: what the settings call the data set.
            place: the file or folder, for messages.
            group: the column whose values must not be in two splits.
            learnt: columns that are no further ones.
        """
        self.data, self.place, self.group, self.learnt = data, place, group, learnt
        self._names: dict[str, None] = {}
        self._rows: list[tuple[str, dict[str, str]]] = []

    def wants(self, name: str) -> bool:
        """Whether a further column's values are looked at."""
        return name == self.group or _plain(name) in NAMES

    def see(self, names: Iterable[str]) -> None:
        """Columns that there are, of which rows may leave out what is not wanted."""
        self._names |= dict.fromkeys(name for name in names if name not in self.learnt)

    def add(self, where: str, row: Mapping[str, Any]) -> None:
        """The next row, and where it stands; what it lacks or has as None it says nothing of."""
        self.see(row)
        found = {name: row[name] for name in row if self.wants(name) and row[name] is not None}
        self._rows.append((where, {name: str(value).strip() for name, value in found.items()}))

    def told(self) -> Told:
        """What all rows say; columns that are not read are printed.

        Raises:
            PipelineError: there is no column `group`, or it is one that is learnt; a row has no
                value, or no split where others have one; a group is in two splits.
        """
        column, splits = self._splits()
        groups = None if self.group is None else self._grouped(self.group)
        unread = [name for name in self._names if name not in (column, self.group)]
        if unread:
            alike = [name for name in unread if GROUPS & _words(name)]
            print(
                f"{self.place}: not read: {', '.join(map(repr, unread))}"
                + (
                    f"; `{self.data}.group: {alike[0]}` would keep all rows of one {alike[0]} in "
                    "one split"
                    if alike and groups is None
                    else ""
                )
            )
        if splits is not None and groups is not None:
            first: dict[str, int] = {}
            for row, name in enumerate(groups):
                other = first.setdefault(name, row)
                if splits[other] != splits[row]:
                    raise PipelineError(
                        f"{self.place}: {self.group} {name!r} is in the splits {splits[other]} "
                        f"({self._rows[other][0]}) and {splits[row]} ({self._rows[row][0]}) of "
                        f"column {column!r}; mend them, or set {self.data}.group to null"
                    )
        return Told(splits, groups, self.group)

    def _splits(self) -> tuple[str | None, list[str] | None]:
        """The column that says the split of each row, and what it says."""
        for name in sorted(self._names, key=_rank):
            if _plain(name) not in NAMES or name == self.group:
                continue
            values = [row.get(name, "") for _, row in self._rows]
            named = [value.casefold() in SPLIT_OF for value in values]
            if not any(named) and _plain(name) != NAMES[0]:
                continue
            if not all(named):
                row = named.index(False)
                raise PipelineError(
                    f"{self._rows[row][0]}: {name} is {values[row]!r}, not train, validation or "
                    "test; correct it, or give the column another name to have the rows dealt out"
                )
            return name, [SPLIT_OF[value.casefold()] for value in values]
        return None, None

    def _grouped(self, name: str) -> list[str]:
        if name in self.learnt or name not in self._names:
            others = ", ".join(repr(one) for one in self._names) or "none"
            raise PipelineError(
                f"{self.data}.group: {self.place} has no further column {name!r}; it has {others}"
            )
        for where, row in self._rows:
            if not row.get(name):
                raise PipelineError(f"{where}: has no {name}; fill it in or remove the row")
        return [row[name] for _, row in self._rows]


def _plain(name: str) -> str:
    return name.strip().casefold()


def _rank(name: str) -> int:
    return NAMES.index(_plain(name)) if _plain(name) in NAMES else len(NAMES)


def _words(name: str) -> set[str]:
    """The words of `patient_id`, `userId` or `Authors`, without the s of several."""
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)
    return {word.lower().removesuffix("s") for word in words}
