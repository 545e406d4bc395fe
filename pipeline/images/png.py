"""Images as files: PNG whose bytes nothing but the pixels decides, and what Pillow reads.

The PNG files are plain (filter 0, deflate in stored blocks: RFC 1951 §3.2.4, RFC 2083) for every
reader, and no zlib version has a say in their bytes. Against Pillow, 28×28: 5 µs an image to write
in place of 80, 3 µs to read in place of 80; the price is size (860 bytes against 300), of which
photographs pay little.
"""

import io
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.prepared import contents

Bytes = NDArray[np.uint8]

_BLOCK = 65535
_AT_ONCE = 2**26
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What `pillow` reads, whatever a file's name says; for PostScript Pillow would call `gs`."""
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What files of these formats are called."""
_GREY = ("1", "L", "LA")
_SEVERAL = (b"GIF8", b"RIFF", b"II", b"MM")
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


def encode(images: Bytes) -> pa.ChunkedArray:
    """PNG files of images of one size.

    Args:
        images: [n, height, width, channels] with 1 or 3 channels.

    Returns:
        A binary column of n files.
    """
    height, width, channels = images.shape[1:]
    head = _head(height, width, channels)

    def file(image: Bytes) -> bytes:
        rows = np.zeros((height, 1 + width * channels), np.uint8)  # the first byte is the filter
        rows[:, 1:] = image.reshape(height, -1)
        data = _stored(rows.tobytes())
        return head + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(b"IDAT"))) + _END

    step = max(1, _AT_ONCE // (height * width * channels))
    parts = (images[start : start + step] for start in range(0, len(images), step))
    return pa.chunked_array([[file(image) for image in part] for part in parts], pa.binary())


def _head(height: int, width: int, channels: int) -> bytes:
    """What stands before the pixels in every file of this size: IHDR, the start of IDAT."""
    colour = {1: 0, 3: 2}[channels]
    ihdr = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, colour, 0, 0, 0)
    raw = height * (1 + width * channels)
    data = 6 + raw + 5 * -(-raw // _BLOCK)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr
    return start + struct.pack(">II4s", zlib.crc32(ihdr), data, b"IDAT")


def _stored(raw: bytes) -> bytes:
    """These bytes in zlib's format, not compressed: a header, blocks, a checksum."""
    parts = [b"\x78\x01"]
    for start in range(0, len(raw), _BLOCK):
        part = raw[start : start + _BLOCK]
        last = start + _BLOCK >= len(raw)
        parts += [struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF), part]
    return b"".join([*parts, struct.pack(">I", zlib.adler32(raw))])


def decode(
    column: pa.ChunkedArray, shape: tuple[int, int, int], where: str, first: int = 0
) -> Bytes:
    """Pixels of a column of image files: [n, channels, height, width].

    Files that `encode` did not write (of a data set that someone else made) are read by Pillow.

    Args:
        column: the files, binary.
        shape: channels, height and width of each image.
        where: named in errors, with the row, counted from `first`.
        first: see `where`.

    Raises:
        PipelineError: an image is missing, corrupt or of another size.
    """
    images = np.empty((len(column), *shape), np.uint8)
    start = 0
    for chunk in column.chunks:
        if not len(chunk):
            continue
        files = chunk.to_pylist()
        pixels = _own(files, shape)
        if pixels is None:
            rows = enumerate(files, first + start)
            pixels = np.stack([_other(file, shape, f"{where}, row {row}") for row, file in rows])
        images[start : start + len(files)] = pixels.transpose(0, 3, 1, 2)
        start += len(files)
    return images


def _own(files: list[bytes | None], shape: tuple[int, int, int]) -> Bytes | None:
    """Pixels [n, height, width, channels] of files as `encode` writes them; None if one differs."""
    channels, height, width = shape
    head, size = _head(height, width, channels), height * (1 + width * channels)
    raw = []
    for file in files:
        if file is None or not file.startswith(head):
            return None
        stream = zlib.decompressobj()  # sees to the checksum
        try:
            raw.append(stream.decompress(file[len(head) : -4 - len(_END)], size + 1))
        except zlib.error:
            return None
        if not stream.eof or stream.unused_data or len(raw[-1]) != size:
            return None
    rows = np.frombuffer(b"".join(raw), np.uint8).reshape(len(files), height, -1)
    if rows[:, :, 0].any():
        return None
    return rows[:, :, 1:].reshape(len(files), height, width, channels)


def _other(file: bytes | None, shape: tuple[int, int, int], where: str) -> Bytes:
    channels, height, width = shape
    image = pillow(file, where, channels)
    if image.shape[:2] != (height, width):
        raise PipelineError(
            f"{where}: is {image.shape[1]}×{image.shape[0]}, "
            f"the data set {width}×{height} pixels; prepare it again"
        )
    return image


def read(table: pa.Table, facts: Any, path: Path) -> Bytes:
    """The images of a split that was read from `path`: [n, channels, height, width].

    Raises:
        PipelineError: see `decode`.
    """
    shape = (facts.channels, facts.height, facts.width)
    return decode(contents(table["image"]), shape, str(path))


def pillow(
    content: bytes | None,
    where: str,
    channels: int | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> Bytes:
    """Pixels of an image file: [height, width, channels].

    Args:
        content: the file.
        where: named in the error.
        channels: 1 or 3; None keeps grey images grey and makes all others RGB.
        formats: those that are taken.

    Raises:
        PipelineError: the image is missing, corrupt or of another format.
    """
    from PIL import Image, ImageOps

    if content is None:
        raise PipelineError(f"{where}: has no image bytes; prepare the data set again")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as opened:
            if opened.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")
            image = ImageOps.exif_transpose(opened)
            if channels is None:
                channels = 1 if image.mode in _GREY else 3
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow's readers raise whatever a malformed file leads them to
        raise PipelineError(
            f"{where}: is not an image that can be read ({_line(error)}); replace or remove it"
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def animated(content: bytes) -> bool:
    """Whether a GIF, PNG, TIFF or WebP file has several frames, of which `pillow` gives the first.

    Files that can't have them are not opened.
    """
    from PIL import Image

    # the chunk stands before a PNG's pixels, and hardly ever among them
    if content.startswith(_SEVERAL) or (content.startswith(b"\x89PNG") and b"acTL" in content):
        with suppress(Exception), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    return False


def measure(content: bytes, where: str) -> tuple[int, int, int]:
    """Height, width and channels that `pillow` gives, of most files without decoding pixels.

    A JPEG or PNG that has its end is taken to be whole.

    Raises:
        PipelineError: see `pillow`.
    """
    from PIL import ExifTags, Image

    with suppress(Exception), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        whole = _ENDS.get(image.format or "", b"no end") in content[-64:]
        # a PNG may have its EXIF behind its pixels
        plain = image.format != "PNG" or not re.search(rb"(?i)exif|xmp", content)
        if whole and plain and image.mode[0] not in "IF":
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            width, height = image.size[::-1] if turned else image.size
            return height, width, 1 if image.mode in _GREY else 3
    height, width, channels = pillow(content, where).shape
    return height, width, channels


def _line(error: Exception) -> str:
    # Pillow names the buffer it read from, with its address
    text = re.sub(r" <[^>]*>", "", str(error)).partition("\n")[0]
    return text or type(error).__name__
