"""Pascal VOC's XML of boxes; loads no torch."""

from collections import Counter
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree  # nosec B405

from pipeline.sources import refuse_leaving
from pipeline.tasks.object_detection.boxes.entries import (
    Box,
    Entry,
    by_stem,
    good_name,
    listed,
    text_of,
)


def read(
    folder: Path, images: Path, stems: Path | None, root: Path, faults: list[str]
) -> tuple[list[str], list[Entry]]:
    """The classes of all boxes, and the images that `stems` names, or all; faults go to `faults`.

    Raises:
        PipelineError: a folder or file is missing or leads out of `root`.
    """
    found = by_stem(images, root, faults)
    if stems is None:
        files = {path.stem for path in listed(folder, root) if path.suffix == ".xml"}
        wanted = sorted(files | set(found))
    else:
        wanted = [line.strip() for line in text_of(stems).splitlines() if line.strip()]
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
    return sorted({box.name for entry in entries for box in entry.boxes}), entries


def _xml(file: Path, image: Path, faults: list[str]) -> Entry:
    entry = Entry(str(file), image, None, [])
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
        if not good_name(name):
            faults.append(f"{where} has no name that can be printed")
        elif corners is None:
            faults.append(f"{where} has no bndbox with the numbers xmin, ymin, xmax, ymax")
        elif difficult.strip() not in ("0", "1"):
            faults.append(f"{where} has a difficult that is not 0 or 1")
        elif corners[0] > corners[2] or corners[1] > corners[3]:
            faults.append(f"{where} is a box that is reversed")
        else:  # pixels are counted from 1, and both corners are pixels of the box
            edges = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
            entry.boxes.append(Box(where, name, edges, difficult.strip() == "1"))
    return entry


def _numbers(element: ElementTree.Element, *names: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(element.findtext(name, "")) for name in names)
    except ValueError:
        return None
