"""Row 14, no goal: CIFAR-10 to 94 % on a GPU.

`--cifar10` names the folder in which torchvision keeps it (with `cifar-10-batches-py`); nothing is
downloaded. The clock starts with the process of `train_cnn` and stops at the first epoch that ends
at 94 % of the official test split, which is the validation split here.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import ROOT, Failed, Row, for_comparison, main, scratch

GOAL = 0.94
RECIPE = (
    "cnn.depth=2", "cnn.channels=[64,128,256,512]", "cnn.dropout=0.1", "training.epochs=40",
    "training.batch_size=512", "training.label_smoothing=0.1", "optimizer.lr=0.01",
    "augment.degrees=0", "augment.translate=0.125", "augment.scale=0", "augment.flip=true",
)  # fmt: skip
WHAT = "CIFAR-10 to 94 %"


def measure(quick: bool) -> list[Row]:
    """Seconds to 94 %, or the best accuracy of the recipe where it stays below."""
    import torch

    source = os.environ.get("CIFAR10")
    if source is None:
        return [
            Row(
                14, WHAT, "–", verdict="skipped: --cifar10 does not name torchvision's folder of it"
            )
        ]
    if not (quick or torch.accelerator.is_available()):
        return [Row(14, WHAT, "–", verdict="skipped: it takes hours without a GPU")]
    with scratch() as folder:
        data = prepared(Path(source), folder / "data" / "image")
        curve = _train(folder, data, ["profile=tiny"] if quick else [])
    reached = [seconds for seconds, accuracy in curve if accuracy >= GOAL]
    if not reached:
        best = max(accuracy for _, accuracy in curve)
        return [for_comparison(14, f"{WHAT}: not reached; the best", [100 * best], "%")]
    points = {"kind": "accuracy", "title": "CIFAR-10", "curves": {"train_cnn": [curve]}}
    return [for_comparison(14, WHAT, [reached[0]], "s", **points)]


def prepared(source: Path, folder: Path, held_out: int = 500) -> Path:
    """CIFAR-10 with its official test split as validation split; `held_out` images are the test."""
    import datasets
    import numpy as np
    import pyarrow as pa
    from torchvision.datasets import CIFAR10

    from pipeline.images import png
    from pipeline.prepared import Prepared, dataset, file_identities, media, write
    from pipeline.sources import distinct
    from pipeline.tasks.image_classification.prepare import pixel_statistics
    from pipeline.tasks.image_classification.settings import Facts

    parts = [CIFAR10(source, train=train) for train in (True, False)]
    classes = parts[0].classes
    labels = np.concatenate([np.array(part.targets, dtype=np.int64) for part in parts])
    images = np.concatenate([part.data for part in parts])
    table = pa.table({"image": media(png.encode(images)), "label": labels})
    identities = file_identities("image")
    kept, dropped = distinct(identities(table), labels)
    ours, official = (kept[side] for side in (kept < len(parts[0]), kept >= len(parts[0])))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    rows = {"train": ours[:-held_out], "validation": official, "test": ours[-held_out:]}
    splits: Any = {split: dataset(table, features, some) for split, some in rows.items()}
    about = {
        "name": "cifar10", "source": "torchvision's folder", "licence": "not stated",
        "citation": "Krizhevsky 2009",
    }  # fmt: skip
    mean, std = pixel_statistics(images[rows["train"]])
    facts = Facts(classes=classes, channels=3, height=32, width=32, mean=mean, std=std)
    write(folder, "image_classification", Prepared(about, facts, dropped, splits, identities), 0)
    return folder


def _train(folder: Path, data: Path, more: list[str]) -> list[tuple[float, float]]:
    """Seconds since the start of the process and accuracy, at the end of each epoch."""
    words = [
        sys.executable, "-m", "stages.train_cnn", f"data={data}", f"output={folder}/model",
        f"curve={folder}/curve.csv", *RECIPE, *more,
    ]  # fmt: skip
    environment = {**os.environ, "DVC_ROOT": str(folder)}
    curve: list[tuple[float, float]] = []
    started = time.perf_counter()
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for accuracy in re.findall(r"validation accuracy ([\d.]+)", line):
                curve.append((time.perf_counter() - started, float(accuracy)))  # noqa: PERF401
    if process.returncode or not curve:
        raise Failed(f"train_cnn on CIFAR-10 ended with status {process.returncode}")
    return curve


if __name__ == "__main__":
    main("cifar", measure)
