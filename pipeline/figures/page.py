"""The page of one model or data set: what was measured and drawn, in one folder."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.figures.style import save
from pipeline.files import new_file, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTING = "figures.json"
SUMMARY = "summary.json"
"""What the report says of a model beside its figures, as `Page.summary` has it."""
FINDINGS = "findings.json"
"""What the report says of a data set beside its figures."""


@dataclass
class Page:
    """Collects what is measured and drawn in one folder.

    Attributes:
        folder: where tables and figures are written.
        numbers: metrics, by name.
        columns: texts for the report's table of models, by the column's heading.
        notes: what is to be said of such a column below the table, by its heading.
        facts: texts for the report, each with what it is called inside a sentence.
        findings: the same of a data set.
    """

    folder: Path
    numbers: dict[str, float] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    _figures: list[dict[str, str]] = field(default_factory=list)
    _tables: list[dict[str, Any]] = field(default_factory=list)

    def figure(self, name: str, figure: "Figure", *, title: str, text: str, alt: str) -> None:
        """Write `<name>.png`; `text` says what is seen, `alt` stands in for the picture."""
        save(figure, self.folder / f"{name}.png")
        self._figures.append({"file": f"{name}.png", "title": title, "text": text, "alt": alt})

    def table(self, name: str, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
        """Write `<name>.csv`, for `dvc plots`; floats have six digits."""
        with (
            new_file(self.folder / f"{name}.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(row[column]) for column in columns] for row in rows)

    def show(self, caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Put a table into the report; its first column names the rows."""
        rows = [list(row) for row in rows]
        self._tables.append({"caption": caption, "columns": list(columns), "rows": rows})

    def close(self, of: Literal["data", "model"]) -> None:
        """Write the list of figures, in the order in which they were drawn, and the texts."""
        write_json(self.folder / LISTING, self._figures)
        if of == "data":
            write_json(self.folder / FINDINGS, list(self.findings.items()))
            return
        summary = {
            "columns": list(self.columns.items()),
            "notes": self.notes,
            "facts": list(self.facts.items()),
            "tables": self._tables,
        }
        write_json(self.folder / SUMMARY, summary)


def fill(
    folder: Path,
    parts: Mapping[str, Callable[[Page, Any], None]],
    study: Any,
    switches: Any,
) -> dict[str, float]:
    """Let each part of an evaluation that is not switched off measure and draw.

    Args:
        folder: where tables and figures are written.
        parts: the task's, in their order.
        study: what they share.
        switches: a part whose name is an attribute of it that is false is left out.

    Returns:
        The metrics, by name.
    """
    page = Page(folder)
    for name, part in parts.items():
        if getattr(switches, name, True):
            part(page, study)
    page.close("model")
    return page.numbers


def _cell(value: Any) -> Any:
    return f"{float(value):.6g}" if isinstance(value, float | np.floating) else value
