"""What annotations say of an image, whatever their format is; loads no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.sources import visible


class Box(NamedTuple):
    """A box, and the place in a file that says so."""

    where: str
    name: str
    corners: Sequence[float]
    """x1 y1 x2 y2 in the entry's unit."""
    ignore: bool


class Entry(NamedTuple):
    """What annotations say of one image; `path` is None where it may not be read."""

    where: str
    path: Path | None
    size: tuple[Any, ...] | None
    """Width and height as the annotation states them; it may state anything."""
    boxes: list[Box]
    relative: bool = False
    """Whether corners are in shares of the image's sides, not in pixels."""
    row: Mapping[str, Any] = {}
    """What else the annotation says of the image, such as its split."""


def text_of(path: Path) -> str:
    """A file of UTF-8.

    Raises:
        PipelineError: it is no such file.
    """
    if path.exists() and not path.is_file():  # a pipe would block
        raise PipelineError(f"{path} is not a file; correct it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PipelineError(f"{path} can't be read ({reason}); correct it") from error


def good_name(name: Any) -> bool:
    """Whether it can be the name of a class."""
    return isinstance(name, str) and name.strip() == name != "" and name.isprintable()


def listed(folder: Path, root: Path) -> list[Path]:
    """The files below a folder.

    Raises:
        PipelineError: it is no folder, or a link in it leads out of `root`.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; correct boxes.splits")
    return visible(folder, root, "boxes.folder")


def by_stem(images: Path, root: Path, faults: list[str]) -> dict[str, Path]:
    """The images of a folder by their names without suffix."""
    found: dict[str, Path] = {}
    for path in listed(images, root):
        if path.suffix.lower() not in png.SUFFIXES:
            if path.suffix.lower() not in (".txt", ".xml"):
                faults.append(f"{path} is not a file of type {', '.join(sorted(png.SUFFIXES))}")
        elif found.setdefault(path.stem, path) != path:
            faults.append(f"{path} and {found[path.stem]} have the same annotations")
    return found
