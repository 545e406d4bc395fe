"""Rebuild the README's figures of what was learnt from the outputs of `dvc repro`.

python docs/figures.py
"""

import csv
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.figures.depth import Estimate, probe_panels  # noqa: E402
from pipeline.figures.style import save  # noqa: E402
from pipeline.task import tasks  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Copy what models drew of themselves; draw the probes of all models that have some."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for file in ("cnn/patches.png", "detector/answers.png", "language_model/surprise.png"):
        shutil.copyfile(ROOT / "plots" / file, IMAGES / Path(file).name)
    models = {}
    for about in (task.about for task in tasks()):
        table = ROOT / f"plots/{about.model}/probes.csv"
        if table.exists():
            models[f"{about.title}, {about.data}"] = _probes(table)
    save(probe_panels(models), IMAGES / "probes.png")


def _probes(table: Path) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {"trained": {}, "untrained": {}}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = Estimate(float(row["accuracy"]), float(row["low"]), float(row["high"]))
            # The raw input is the same for both, and in the table once.
            for network in found if row["depth"] == "raw" else (row["network"],):
                found[network][row["depth"]] = point
    return found


if __name__ == "__main__":
    main()
