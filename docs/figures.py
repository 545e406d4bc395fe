"""Rebuild the README's figures of what was learnt from the outputs of `dvc repro`.

python docs/figures.py
"""

import csv
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.figures.depth import Interval, probe_curves  # noqa: E402
from pipeline.figures.style import save  # noqa: E402

MODELS = {"cnn": "CNN, images", "transformer": "Transformer, text", "rnn": "RNN, speech"}
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Copy the most exciting patches of the CNN; draw the probes of the three models."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "plots/cnn/patches.png", IMAGES / "patches.png")
    models = {title: _probes(ROOT / f"plots/{name}/probes.csv") for name, title in MODELS.items()}
    save(probe_curves(models), IMAGES / "probes.png")


def _probes(table: Path) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {"trained": {}, "untrained": {}}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = Interval(float(row["accuracy"]), float(row["low"]), float(row["high"]))
            # The raw input is the same for both, and in the table once.
            for network in found if row["depth"] == "raw" else (row["network"],):
                found[network][row["depth"]] = point
    return found


if __name__ == "__main__":
    main()
