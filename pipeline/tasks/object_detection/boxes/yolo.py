"""YOLO's text of boxes; loads no torch."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError
from pipeline.tasks.object_detection.boxes.entries import (
    Box,
    Entry,
    by_stem,
    good_name,
    listed,
    text_of,
)


def read(
    folder: Path, images: Path, classes: Path, root: Path, faults: list[str]
) -> tuple[list[str], list[Entry]]:
    """The classes that a file lists, and all images of a folder; what is wrong goes to `faults`.

    Raises:
        PipelineError: there are no classes; a folder is missing or leads out of `root`.
    """
    names = _names(classes)
    found = by_stem(images, root, faults)
    files = {path.stem: path for path in listed(folder, root) if path.suffix == ".txt"}
    if folder == images:  # where the list of classes may lie, too
        files.pop("classes", None)
    faults += [
        f"{path} is of no image in {images}" for stem, path in files.items() if stem not in found
    ]
    entries = []
    for stem, image in found.items():
        entry = Entry(str(image), image, None, [], relative=True)
        entries.append(entry)
        if stem not in files:
            continue
        try:
            lines = text_of(files[stem]).splitlines()
        except PipelineError as error:
            faults.append(str(error))
            continue
        for number, line in enumerate(lines, 1):
            where, fields = f"{files[stem]}, line {number}", line.split()
            try:
                label, values = int(fields[0]), [float(field) for field in fields[1:]]
            except (IndexError, ValueError):
                if fields:
                    faults.append(f"{where} is not a class and four numbers: {line!a:.80}")
                continue
            if len(values) != 4:
                faults.append(f"{where} has {len(fields)} numbers, not class, x, y, width, height")
            elif not 0 <= label < len(names):
                faults.append(f"{where} is of class {label}; there are {len(names)}, from 0")
            else:
                x, y, width, height = values
                corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                entry.boxes.append(Box(where, names[label], corners, False))
    return names, entries


def _names(file: Path) -> list[str]:
    """The class names in a list of them, or under `names` in a YAML file.

    Raises:
        PipelineError: there are none.
    """
    text = text_of(file)
    names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if file.suffix in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise PipelineError(f"{file} is not YAML ({error}); correct it") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(map(good_name, names)):
        raise PipelineError(f"{file} has no list of class names that can be printed; correct it")
    if len(set(names)) < len(names):
        raise PipelineError(f"{file} has a class name twice; correct it")
    return names
