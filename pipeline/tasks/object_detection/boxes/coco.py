"""COCO's JSON of boxes; loads no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.sources import refuse_leaving
from pipeline.tasks.object_detection.boxes.entries import Box, Entry, good_name, text_of

FAR = 1e9
"""Pixels, more than any image has."""


def read(file: Path, images: Path, root: Path, faults: list[str]) -> tuple[list[str], list[Entry]]:
    """The classes in the order of their ids, and the images; what is wrong goes to `faults`.

    Raises:
        PipelineError: the file is not of this format.
    """
    try:
        content = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{file} is not JSON ({error}); export it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise PipelineError(f"{file} has no list {key!r}; export it as COCO's object detection")

    def rows(key: str, **kinds: type) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(content[key]):
            where = f"{file}, {key}[{number}]"
            for name, kind in kinds.items():
                value = row.get(name) if isinstance(row, dict) else None
                if not isinstance(value, kind) or isinstance(value, bool):
                    faults.append(f"{where} has no {name} that is {kind.__name__}")
                    break
            else:
                yield where, row

    names: dict[int, str] = {}
    for where, row in rows("categories", id=int, name=str):
        if row["id"] in names or row["name"] in names.values():
            faults.append(f"{where} has the id or name of another one")
        elif not good_name(row["name"]):
            faults.append(f"{where} has a name that is empty or can't be printed")
        names.setdefault(row["id"], row["name"])

    entries: dict[int, Entry] = {}
    files: set[Path] = set()
    for where, row in rows("images", id=int, file_name=str):
        name = row["file_name"]
        if row["id"] in entries or images / name in files:
            faults.append(f"{where} has the id or file_name of another one")
            continue
        files.add(images / name)
        size = (row["width"], row["height"]) if "width" in row and "height" in row else None
        path = _named(name, images, root, where, faults)
        entries[row["id"]] = Entry(where, path, size, [], row=row)
    for where, row in rows("annotations", image_id=int, category_id=int, bbox=list):
        box, crowd = row["bbox"], row.get("iscrowd", 0)
        if len(box) != 4 or not all(type(v) in (int, float) and -FAR < v < FAR for v in box):
            faults.append(f"{where} has a bbox that is not four finite numbers")
        elif row["image_id"] not in entries:
            faults.append(f"{where} is of image {row['image_id']}, which is not in images")
        elif row["category_id"] not in names:
            faults.append(
                f"{where} is of category {row['category_id']}, which is not in categories"
            )
        elif crowd not in (0, 1):
            faults.append(f"{where} has an iscrowd that is not 0 or 1")
        else:
            left, top, width, height = box
            corners, name = (left, top, left + width, top + height), names[row["category_id"]]
            entries[row["image_id"]].boxes.append(Box(where, name, corners, bool(crowd)))
    return [names[number] for number in sorted(names)], list(entries.values())


def _named(name: str, images: Path, root: Path, where: str, faults: list[str]) -> Path | None:
    """The image that an annotation names, None if it may not be read."""
    path = images / name
    if not name.isprintable() or not path.is_relative_to(images) or ".." in Path(name).parts:
        faults.append(f"{where}: file_name {name!a:.80} is not below {images}")
        return None
    try:
        refuse_leaving(path, root, where)
    except PipelineError as error:
        faults.append(str(error))
        return None
    return path
