"""The page of one model: figures, each with a title, two sentences and a description."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.tables import write_csv
from pipeline.figures.style import save
from pipeline.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.figure import Figure

LISTING = "figures.json"


@dataclass
class Page:
    """Collects what is measured and drawn for one model in one folder.

    Attributes:
        folder: where tables and figures are written.
        numbers: metrics to be added to the model's own, by name.
    """

    folder: Path
    numbers: dict[str, float] = field(default_factory=dict)
    _figures: list[dict[str, str]] = field(default_factory=list)

    def figure(self, name: str, figure: "Figure", *, title: str, text: str, alt: str) -> None:
        """Write `<name>.png`; `text` says what is seen, `alt` stands in for the picture."""
        save(figure, self.folder / f"{name}.png")
        self._figures.append({"file": f"{name}.png", "title": title, "text": text, "alt": alt})

    def table(self, name: str, rows: "Iterable[Mapping[str, Any]]", columns: list[str]) -> None:
        """Write `<name>.csv`."""
        write_csv(self.folder / f"{name}.csv", rows, columns)

    def close(self) -> None:
        """Write the list of figures, in the order in which they were drawn."""
        write_json(self.folder / LISTING, self._figures)
