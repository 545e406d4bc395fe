"""Data sets with boxes as people's tools write them, in three formats."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from pipeline.tasks.object_detection.boxes.read import Boxes
from pipeline.tasks.object_detection.settings import Source

CLASSES = ["cat", "dog", "owl"]


class Drawn(NamedTuple):
    """An image of this size and its boxes: class, x1 y1 x2 y2, ignore."""

    width: int
    height: int
    boxes: Sequence[tuple[int, tuple[float, float, float, float], bool]]


def picture(width: int, height: int, number: int, kind: str = "PNG") -> bytes:
    """An image file, another for each number."""
    file, random = io.BytesIO(), np.random.default_rng(number)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def images(folder: Path, scenes: Sequence[Drawn], first: int = 0) -> list[str]:
    """Write the images of the scenes; their names without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(scenes, first):
        (folder / f"{number:04}.png").write_bytes(picture(one.width, one.height, number))
    return [f"{number:04}" for number in range(first, first + len(scenes))]


def coco(folder: Path, scenes: Sequence[Drawn], split: str = "all", first: int = 0) -> None:
    """`<split>.json` and images; ids have gaps, classes stand in another order."""
    rows: list[dict[str, Any]] = []
    names = images(folder / "images", scenes, first)
    for number, one in enumerate(scenes):
        for label, (x1, y1, x2, y2), ignore in one.boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append(
                {"id": len(rows), "image_id": 7 * number, "category_id": 1 + 10 * label,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": int(ignore)}
            )  # fmt: skip
    content = {
        "images": [
            {"id": 7 * n, "file_name": f"{name}.png", "width": s.width, "height": s.height}
            for n, (name, s) in enumerate(zip(names, scenes, strict=True))
        ],
        "annotations": rows,
        "categories": [{"id": 1 + 10 * n, "name": CLASSES[n]} for n in (2, 0, 1)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))


def voc(folder: Path, scenes: Sequence[Drawn], split: str = "all", first: int = 0) -> None:
    """JPEGImages, Annotations, and `<split>.txt` with their names."""
    names = images(folder / "JPEGImages", scenes, first)
    (folder / "Annotations").mkdir(exist_ok=True)
    for name, one in zip(names, scenes, strict=True):
        things = "".join(
            f"<object><name>{escape(CLASSES[label])}</name><difficult>{int(ignore)}</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>\n"
            for label, (x1, y1, x2, y2), ignore in one.boxes
        )
        (folder / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{one.width}</width>"
            f"<height>{one.height}</height><depth>3</depth></size>\n{things}</annotation>"
        )
    (folder / f"{split}.txt").write_text("\n".join(names) + "\n")


def yolo(folder: Path, scenes: Sequence[Drawn], split: str = "all", first: int = 0) -> None:
    """`images/<split>`, `labels/<split>` (nothing for an image without boxes), `data.yaml`."""
    names = images(folder / "images" / split, scenes, first)
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    for name, one in zip(names, scenes, strict=True):
        lines = [
            f"{label} {(x1 + x2) / 2 / one.width:.6f} {(y1 + y2) / 2 / one.height:.6f} "
            f"{(x2 - x1) / one.width:.6f} {(y2 - y1) / one.height:.6f}\n"
            for label, (x1, y1, x2, y2), _ in one.boxes
        ]
        if lines:
            (labels / f"{name}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(json.dumps({"names": CLASSES, "nc": len(CLASSES)}))


def boxes(*rows: Sequence[float]) -> Boxes:
    """Rows of x1, y1, x2, y2, label, and a score: of true boxes 1, if none is given."""
    table = np.array([(*row, 1.0)[:6] for row in rows], np.float32).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 4].astype(np.int64), table[:, 5])


WRITERS = {"coco": coco, "voc": voc, "yolo": yolo}


def source(kind: str, folder: Path, *splits: str) -> Source:
    """The settings of what `WRITERS[kind]` wrote, for each of these splits."""
    places = {
        "coco": lambda split: {"images": "images", "annotations": f"{split}.json"},
        "voc": lambda split: {
            "images": "JPEGImages",
            "annotations": "Annotations",
            "only": None if split == "all" else f"{split}.txt",
        },
        "yolo": lambda split: {"images": f"images/{split}", "annotations": f"labels/{split}"},
    }
    own = {"train" if split == "all" else split: places[kind](split) for split in splits or ["all"]}
    return Source.model_validate(
        {"name": kind, "kind": kind, "folder": str(folder), "splits": own, "validation": 0.2,
         "test": 0.2, "classes": "data.yaml" if kind == "yolo" else None}
    )  # fmt: skip


def scenes(count: int, seed: int = 0) -> list[Drawn]:
    """Random scenes of whole pixels; every fourth has no box."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(20, 60, 2))
        boxes = []
        for _ in range(number % 4):
            x, y = random.integers(0, width - 9), random.integers(0, height - 9)
            across, down = random.integers(4, 10, 2)
            corners = (float(x), float(y), float(x + across), float(y + down))
            boxes.append((int(random.integers(3)), corners, False))
        found.append(Drawn(width, height, boxes))
    return found
