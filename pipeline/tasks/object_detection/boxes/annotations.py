"""Boxes that people drew: COCO's JSON, Pascal VOC's XML, YOLO's text; loads no torch."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree import ElementTree  # nosec B405

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.prepared import SPLITS, SplitName
from pipeline.sources import refuse_leaving, visible
from pipeline.tasks.object_detection.settings import Part, Source

SHOWN = 5
"""Faults that the error tells of, the first ones."""
SLACK = 1.01
"""Pixels that a box may leave its image by, one and what YOLO's digits take; it is cut there."""
FAR = 1e9
"""Pixels, more than any image has."""


class Picture(NamedTuple):
    """An image with the boxes in it.

    Attributes:
        file: the bytes of a PNG or JPEG file, as they came; of another format, made a PNG.
        channels: 1 (grey) or 3.
        corners: x1 y1 x2 y2 in pixels of the image as its EXIF orientation turns it, with
            0 ≤ x1 < x2 ≤ width; float32 [n, 4].
        labels: indices into the classes, int64 [n].
        ignore: boxes that are neither learnt nor counted, bool [n].
    """

    file: bytes
    channels: int
    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


class _Box(NamedTuple):
    where: str
    name: str
    corners: Sequence[float]
    """x1 y1 x2 y2 in pixels, of YOLO in shares of the sides."""
    ignore: bool


class _Entry(NamedTuple):
    where: str
    path: Path | None
    size: tuple[Any, ...] | None
    """Width and height as the annotation states them; it may state anything."""
    boxes: list[_Box]


def read(source: Source) -> tuple[list[str], dict[SplitName, list[Picture]]]:
    """The classes of a source, and the pictures of each split that it has, in their files' order.

    Annotations are of an image as its EXIF orientation turns it, for so it is shown by what people
    draw boxes with. Classes are those of the training split.

    Raises:
        PipelineError: a file is missing or malformed; or how many faults there are in images and
            boxes, and the first of them with file and row.
    """
    if source.folder is None or source.splits is None:
        key = "folder" if source.folder is None else "splits"
        raise PipelineError(f"boxes.{key} is null; say where images and annotations lie")
    root, faults = Path(source.folder), list[str]()
    classes, entries = list[str](), dict[SplitName, list[_Entry]]()
    for split in SPLITS:
        part: Part | None = getattr(source.splits, split)
        if part is None:
            continue
        key = f"boxes.splits.{split}"
        images = _inside(root, part.images, f"{key}.images")
        annotations = _inside(root, part.annotations, f"{key}.annotations")
        match source.kind:
            case "coco":
                names, entries[split] = _coco(annotations, images, root, faults)
            case "voc":
                stems = _inside(root, part.only, f"{key}.only") if part.only else None
                entries[split] = _voc(annotations, images, stems, root, faults)
                names = sorted({box.name for entry in entries[split] for box in entry.boxes})
            case _:
                names = _names(_inside(root, source.classes, "boxes.classes"))
                entries[split] = _yolo(annotations, images, names, root, faults)
        classes = classes or names
    relative = source.kind == "yolo"
    found = {split: _pictures(part, classes, relative, faults) for split, part in entries.items()}
    faults = list(dict.fromkeys(faults))  # splits may share a folder
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        count = f"{len(faults):,} faults" if len(faults) > 1 else "1 fault"
        raise PipelineError(f"{root} has {count}: {'; '.join(faults[:SHOWN])}{more}; mend them all")
    return classes, found


def _inside(root: Path, name: str | None, key: str) -> Path:
    if name is None:
        raise PipelineError(f"{key} is null; name it as it is called below {root}")
    path = root / name
    refuse_leaving(path, root, key)
    if not path.exists():
        raise PipelineError(f"{key}: {path} is missing; put it there or correct the path")
    return path


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe would block
        raise PipelineError(f"{path} is not a file; correct it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PipelineError(f"{path} can't be read ({reason}); correct it") from error


def _good_name(name: Any) -> bool:
    return isinstance(name, str) and name.strip() == name != "" and name.isprintable()


# COCO


def _coco(
    file: Path, images: Path, root: Path, faults: list[str]
) -> tuple[list[str], list[_Entry]]:
    try:
        content = json.loads(_text(file))
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
        elif not _good_name(row["name"]):
            faults.append(f"{where} has a name that is empty or can't be printed")
        names.setdefault(row["id"], row["name"])

    entries: dict[int, _Entry] = {}
    files: set[Path] = set()
    for where, row in rows("images", id=int, file_name=str):
        name = row["file_name"]
        if row["id"] in entries or images / name in files:
            faults.append(f"{where} has the id or file_name of another one")
            continue
        files.add(images / name)
        size = (row["width"], row["height"]) if "width" in row and "height" in row else None
        entries[row["id"]] = _Entry(where, _named(name, images, root, where, faults), size, [])
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
            entries[row["image_id"]].boxes.append(_Box(where, name, corners, bool(crowd)))
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


# Pascal VOC


def _voc(
    folder: Path, images: Path, stems: Path | None, root: Path, faults: list[str]
) -> list[_Entry]:
    found = _by_stem(images, root, faults)
    if stems is None:
        files = {path.stem for path in _listed(folder, root) if path.suffix == ".xml"}
        wanted = sorted(files | set(found))
    else:
        wanted = [line.strip() for line in _text(stems).splitlines() if line.strip()]
        twice = {name for name, count in Counter(wanted).items() if count > 1}
        faults += [f"{stems} names {name!a:.80} twice" for name in sorted(twice)]
    entries = []
    for stem in dict.fromkeys(wanted):
        file = folder / f"{stem}.xml"
        if stem not in found:
            faults.append(f"{stems or file} is of {stem!a:.80}, which is no image in {images}")
        elif not file.is_file():
            faults.append(f"{found[stem]} has no {file}, which an image without boxes has too")
        else:
            refuse_leaving(file, root, "boxes.folder")
            entries.append(_xml(file, found[stem], faults))
    return entries


def _xml(file: Path, image: Path, faults: list[str]) -> _Entry:
    entry = _Entry(str(file), image, None, [])
    try:
        content = file.read_bytes()
        # no entities without a DOCTYPE, whose characters may be two bytes wide
        if b"<!DOCTYPE" in content.replace(b"\0", b""):
            raise ValueError("has a DOCTYPE")
        top = ElementTree.fromstring(content)  # noqa: S314 # nosec B314
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        faults.append(f"{file} is not XML that is read ({error})")
        return entry
    named = PureWindowsPath(top.findtext("filename", "").strip())  # the last part of either kind
    if named.name and file.stem not in (named.stem, named.name):
        faults.append(f"{file}: filename is {named.name!a:.80}, not {image.name}")
    if (size := top.find("size")) is not None:
        entry = entry._replace(size=_numbers(size, "width", "height") or ())
    for number, thing in enumerate(top.findall("object"), 1):
        where = f"{file}, object {number}"
        box = thing.find("bndbox")
        corners = None if box is None else _numbers(box, "xmin", "ymin", "xmax", "ymax")
        name, difficult = thing.findtext("name", "").strip(), thing.findtext("difficult", "0")
        if not _good_name(name):
            faults.append(f"{where} has no name that can be printed")
        elif corners is None:
            faults.append(f"{where} has no bndbox with the numbers xmin, ymin, xmax, ymax")
        elif difficult.strip() not in ("0", "1"):
            faults.append(f"{where} has a difficult that is not 0 or 1")
        elif corners[0] > corners[2] or corners[1] > corners[3]:
            faults.append(f"{where} is a box that is reversed")
        else:  # pixels are counted from 1, and both corners are pixels of the box
            edges = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
            entry.boxes.append(_Box(where, name, edges, difficult.strip() == "1"))
    return entry


def _numbers(element: ElementTree.Element, *names: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(element.findtext(name, "")) for name in names)
    except ValueError:
        return None


# YOLO


def _names(file: Path) -> list[str]:
    """The class names in a list of them, or under `names` in a YAML file."""
    text = _text(file)
    names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if file.suffix in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise PipelineError(f"{file} is not YAML ({error}); correct it") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(map(_good_name, names)):
        raise PipelineError(f"{file} has no list of class names that can be printed; correct it")
    if len(set(names)) < len(names):
        raise PipelineError(f"{file} has a class name twice; correct it")
    return names


def _yolo(
    folder: Path, images: Path, names: list[str], root: Path, faults: list[str]
) -> list[_Entry]:
    found = _by_stem(images, root, faults)
    files = {path.stem: path for path in _listed(folder, root) if path.suffix == ".txt"}
    if folder == images:  # where the list of classes may lie, too
        files.pop("classes", None)
    faults += [
        f"{path} is of no image in {images}" for stem, path in files.items() if stem not in found
    ]
    entries = []
    for stem, image in found.items():
        entry = _Entry(str(image), image, None, [])
        entries.append(entry)
        if stem not in files:
            continue
        try:
            lines = _text(files[stem]).splitlines()
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
                entry.boxes.append(_Box(where, names[label], corners, False))
    return entries


# images


def _listed(folder: Path, root: Path) -> list[Path]:
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; correct boxes.splits")
    return visible(folder, root, "boxes.folder")


def _by_stem(images: Path, root: Path, faults: list[str]) -> dict[str, Path]:
    """The images of a folder by their names without suffix."""
    found: dict[str, Path] = {}
    for path in _listed(images, root):
        if path.suffix.lower() not in png.SUFFIXES:
            if path.suffix.lower() not in (".txt", ".xml"):
                faults.append(f"{path} is not a file of type {', '.join(sorted(png.SUFFIXES))}")
        elif found.setdefault(path.stem, path) != path:
            faults.append(f"{path} and {found[path.stem]} have the same annotations")
    return found


def _pictures(
    entries: list[_Entry], classes: list[str], relative: bool, faults: list[str]
) -> list[Picture]:
    number = {name: label for label, name in enumerate(classes)}
    found = []
    with ThreadPoolExecutor() as threads:
        for entry, opened in zip(entries, threads.map(_opened, entries), strict=True):
            if isinstance(opened, str):
                faults.append(opened)
            elif opened is not None:
                found.append(_picture(entry, *opened, number, relative, faults))
    return found


def _opened(entry: _Entry) -> tuple[bytes, tuple[int, int, int]] | str | None:
    """An image and its shape, or what is wrong with it; None if that has been said."""
    if entry.path is None:
        return None
    try:
        if not entry.path.is_file():
            return f"{entry.where}: {entry.path} is missing"
        file = entry.path.read_bytes()
        if file.startswith((b"\x89PNG", b"\xff\xd8")):
            return file, png.measure(file, str(entry.path))
        pixels = png.pillow(file, str(entry.path))
        height, width, channels = pixels.shape
        return png.encode(pixels[None])[0].as_py(), (height, width, channels)
    except OSError as error:
        return f"{entry.path} can't be read ({error.strerror})"
    except PipelineError as error:
        return str(error).removesuffix("; replace or remove it")


def _picture(
    entry: _Entry,
    file: bytes,
    shape: tuple[int, int, int],
    number: dict[str, int],
    relative: bool,
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
    drawn = drawn * sides if relative else drawn
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
        if box.name not in number
    ]
    labels = np.array([number.get(box.name, 0) for box in boxes], np.int64)
    return Picture(file, channels, corners, labels, np.array([box.ignore for box in boxes], bool))
