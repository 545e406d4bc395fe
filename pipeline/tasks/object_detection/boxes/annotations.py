"""Boxes that people drew: COCO's JSON, Pascal VOC's XML, YOLO's text; loads no torch."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import Columns
from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.prepared import SPLITS, SplitName
from pipeline.sources import refuse_leaving, spelt_alike
from pipeline.tasks.object_detection.boxes import coco, voc, yolo
from pipeline.tasks.object_detection.boxes.entries import Entry
from pipeline.tasks.object_detection.settings import Paths, Source

SHOWN = 5
"""Faults that the error tells of, the first ones."""
OF_COCO = (
    "id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured",
)  # fmt: skip
"""What COCO's format has of an image."""
SLACK = 1.01
"""Pixels that a box may leave its image by, one and what YOLO's digits take; it is cut there."""


class Picture(NamedTuple):
    """An image with the boxes in it.

    Attributes:
        file: the bytes of a PNG or JPEG file, as they came; of another format, made a PNG.
        channels: 1 (grey) or 3.
        corners: x1 y1 x2 y2 in pixels of the image as its EXIF orientation turns it, with
            0 ≤ x1 < x2 ≤ width; float32 [n, 4].
        labels: indices into the classes, int64 [n].
        ignore: boxes that are neither learnt nor counted, bool [n].
        group: what must not be in two splits; None where nothing is kept together.
        path: of the file.
        animated: whether the file had further frames, which are left out.
    """

    file: bytes
    channels: int
    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    group: str | None = None
    path: str = ""
    animated: bool = False


def read(source: Source) -> tuple[list[str], dict[SplitName, list[Picture]]]:
    """The classes of a source, and the pictures of each split that it has, in their files' order.

    Annotations are of an image as its EXIF orientation turns it, for so it is shown by what people
    draw boxes with. Classes are those of the training split. Where a file for `train` is all that
    is named, an image is of the split that its entry in COCO says, if there it says one.

    Raises:
        PipelineError: a file is missing or malformed; or how many faults there are in images and
            boxes, and the first of them with file and row.
    """
    if source.folder is None or source.splits is None:
        key = "folder" if source.folder is None else "splits"
        raise PipelineError(f"boxes.{key} is null; say where images and annotations lie")
    root, faults = Path(source.folder), list[str]()
    classes, entries = list[str](), dict[SplitName, list[Entry]]()
    for split in SPLITS:
        paths: Paths | None = getattr(source.splits, split)
        if paths is None:
            continue
        key = f"boxes.splits.{split}"
        images = _inside(root, paths.images, f"{key}.images")
        annotations = _inside(root, paths.annotations, f"{key}.annotations")
        match source.kind:
            case "coco":
                names, entries[split] = coco.read(annotations, images, root, faults)
            case "voc":
                only = _inside(root, paths.only, f"{key}.only") if paths.only else None
                names, entries[split] = voc.read(annotations, images, only, root, faults)
            case _:
                listed = _inside(root, source.classes, "boxes.classes")
                names, entries[split] = yolo.read(annotations, images, listed, root, faults)
        classes = classes or names
    counts = Counter(box.name for part in entries.values() for entry in part for box in entry.boxes)
    if question := spelt_alike(dict.fromkeys(classes, 0) | counts):
        faults.append(question)
    placed = _as_told(source, entries)
    found = {split: _pictures(part, classes, faults) for split, part in placed.items()}
    faults = list(dict.fromkeys(faults))  # splits may share a folder
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        count = f"{len(faults):,} faults" if len(faults) > 1 else "1 fault"
        raise PipelineError(f"{root} has {count}: {'; '.join(faults[:SHOWN])}{more}; mend them all")
    return classes, found


def _as_told(
    source: Source, entries: dict[SplitName, list[Entry]]
) -> dict[SplitName, list[tuple[Entry, str | None]]]:
    """The entries, each with its group, in the splits that they say they are of.

    Raises:
        PipelineError: see `Columns.told`; or one says another split than the settings.
    """
    further = Columns("boxes", str(source.folder), source.group, OF_COCO)
    every = [(split, entry) for split, part in entries.items() for entry in part]
    for _, entry in every:
        further.add(entry.where, entry.row)
    told = further.told()
    placed: dict[SplitName, list[tuple[Entry, str | None]]] = {split: [] for split in entries}
    for row, (split, entry) in enumerate(every):
        own = cast(SplitName, told.splits[row]) if told.splits else split
        if own != split and len(entries) > 1:
            raise PipelineError(
                f"{entry.where} says that it is of {own}, boxes.splits that it is of {split}; "
                "mend one of them"
            )
        placed.setdefault(own, []).append((entry, told.groups[row] if told.groups else None))
    if told.splits:
        counts = ", ".join(f"{len(part):,} {split}" for split, part in placed.items() if part)
        print(f"{source.folder}: the images' own splits are kept: {counts}")
    return placed


def _inside(root: Path, name: str | None, key: str) -> Path:
    if name is None:
        raise PipelineError(f"{key} is null; name it as it is called below {root}")
    path = root / name
    refuse_leaving(path, root, key)
    if not path.exists():
        raise PipelineError(f"{key}: {path} is missing; put it there or correct the path")
    return path


def _pictures(
    entries: list[tuple[Entry, str | None]], classes: list[str], faults: list[str]
) -> list[Picture]:
    label_of = {name: label for label, name in enumerate(classes)}
    found = []
    with ThreadPoolExecutor() as threads:
        files = threads.map(_opened, [entry for entry, _ in entries])
        for (entry, group), opened in zip(entries, files, strict=True):
            if isinstance(opened, str):
                faults.append(opened)
            elif opened is not None:
                picture = _picture(entry, *opened, label_of, faults)
                found.append(picture._replace(group=group))
    return found


def _opened(entry: Entry) -> tuple[bytes, tuple[int, int, int], bool] | str | None:
    """An image, its shape, whether it is animated; what is wrong with it; None if that is said."""
    if entry.path is None:
        return None
    try:
        if not entry.path.is_file():
            return f"{entry.where}: {entry.path} is missing"
        file = entry.path.read_bytes()
        animated = png.animated(file)
        if file.startswith((b"\x89PNG", b"\xff\xd8")):
            return file, png.measure(file, str(entry.path)), animated
        pixels = png.pillow(file, str(entry.path))
        height, width, channels = pixels.shape
        return png.encode(pixels[None])[0].as_py(), (height, width, channels), animated
    except OSError as error:
        return f"{entry.path} can't be read ({error.strerror})"
    except PipelineError as error:
        return str(error).removesuffix("; replace or remove it")


def _picture(
    entry: Entry,
    file: bytes,
    shape: tuple[int, int, int],
    animated: bool,
    label_of: dict[str, int],
    faults: list[str],
) -> Picture:
    height, width, channels = shape
    boxes, sides = entry.boxes, np.array([width, height] * 2)
    if entry.size not in (None, (width, height)):
        faults.append(
            f"{entry.where} says width and height are {entry.size!a:.40}; {entry.path} has "
            f"{width}×{height} pixels as it is shown"
        )
        boxes = []  # drawn on another picture
    drawn = np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)
    drawn = drawn * sides if entry.relative else drawn
    corners = np.clip(drawn, 0, sides).astype(np.float32)
    away = np.abs(drawn - corners).max(axis=1, initial=0)
    good = (away <= SLACK) & (corners[:, :2] < corners[:, 2:]).all(axis=1)
    for row in np.flatnonzero(~good):
        box = boxes[row]
        if not np.isfinite(drawn[row]).all():
            reason = "has a coordinate that is not finite"
        elif (drawn[row, :2] > drawn[row, 2:]).any():
            reason = "is reversed: its right or lower side lies before the other"
        elif away[row] > SLACK:
            reason = f"leaves its image of {width}×{height} pixels by {away[row]:.6g}"
        else:
            reason = f"has no area in its image of {width}×{height} pixels"
        faults.append(f"{box.where} {reason}")
    faults += [
        f"{box.where} is of class {box.name!a}, which the training split does not know"
        for box in boxes
        if box.name not in label_of
    ]
    labels = np.array([label_of.get(box.name, 0) for box in boxes], np.int64)
    ignore = np.array([box.ignore for box in boxes], bool)
    return Picture(file, channels, corners, labels, ignore, path=str(entry.path), animated=animated)
