"""Prepared data sets of random images, of any size, written a part at a time."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import digest, write_json
from pipeline.images import png
from pipeline.prepared import CARD, SPLITS, media

CLASSES = 10
_PART = 20_000


def images(folder: Path, rows: int, size: int, channels: int) -> Path:
    """`rows` training images of size × size, and 1,000 each to validate and test.

    A class is a level of grey under noise, so that there is something to learn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    splits = {}
    for split in SPLITS:
        count = rows if split == "train" else min(rows, 1000)
        labels = random.permutation(np.arange(count) % CLASSES)
        path = folder / f"{split}.parquet"
        with pq.ParquetWriter(path, _table(labels[:0], size, channels, random).schema) as writer:
            for part in np.array_split(labels, -(-count // _PART)):
                writer.write_table(_table(part, size, channels, random))
        splits[split] = {"rows": count, "sha256": digest(path, "sha256")}
    facts = {
        "classes": [str(i) for i in range(CLASSES)], "channels": channels, "height": size,
        "width": size, "mean": [0.46] * channels, "std": [0.2] * channels,
    }  # fmt: skip
    card = {
        "task": "image_classification", "name": "synthetic", "source": "bench.synthetic",
        "licence": "MIT", "citation": "–", "seed": 0, "dropped": {}, "facts": facts,
        "splits": splits,
    }  # fmt: skip
    write_json(folder / CARD, card)
    return folder


def _table(labels: np.ndarray, size: int, channels: int, random: np.random.Generator) -> pa.Table:
    noise = random.integers(0, 128, (max(1, len(labels)), size, size, channels), dtype=np.uint8)
    level = np.resize(labels, max(1, len(labels))).astype(np.uint8)[:, None, None, None]
    files = media(png.encode(noise + 12 * level))
    return pa.table({"image": files.slice(0, len(labels)), "label": labels})
