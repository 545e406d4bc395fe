"""Row 10: ten times the rows: the time of an epoch, and the memory of data on the disk."""

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import (
    ROOT,
    Memory,
    Row,
    alternate,
    at_most,
    main,
    prepare,
    ratios,
    scratch,
)  # fmt: skip
from bench.synthetic import images

ROWS = (3_000, 10_000, 30_000)
ON_DISK = (30_000, 300_000)
SCENES = (1_000, 10_000)
STEPS = 100


def measure(quick: bool) -> list[Row]:
    """Random images of 28×28 through the `simple` CNN, whose own time is small; the detector's."""
    sizes = [size // 30 if quick else size for size in ROWS]
    large = [size // 100 if quick else size for size in ON_DISK]
    scenes = [size // 30 if quick else size for size in SCENES]
    with scratch() as folder:
        data = {rows: images(folder / str(rows), rows, 28, 1) for rows in {*sizes, *large}}
        found = alternate(
            {str(rows): partial(_epoch, folder, data[rows], "cnn", "cnn=simple") for rows in sizes},
            1 if quick else 5,
        )
        drawn = {rows: _scenes(folder / f"scenes{rows}", rows) for rows in scenes}
        boxes = alternate(
            {str(rows): partial(_epoch, folder, drawn[rows], "detector") for rows in scenes},
            1 if quick else 3,
        )
        memory = alternate(
            {str(rows): partial(_memory, folder, data[rows]) for rows in large}, 1 if quick else 2
        )
    seconds, held = ([one[str(n)] for n in some] for one, some in ((found, sizes), (memory, large)))
    what = "anonymous memory with 10 × the rows on the disk, process tree"
    points: dict[str, Any] = {
        "rows": large,
        "gigabytes": [[one / 1e9 for one in some] for some in held],
    }
    return [
        at_most(
            10, "epoch of 10 × the rows", 10.5, ratios(seconds[-1], seconds[0]),
            kind="growth", rows=sizes, seconds=seconds,
        ),
        at_most(
            10, "epoch of 10 × the rows, detector", 10.5,
            ratios(boxes[str(scenes[1])], boxes[str(scenes[0])]),
        ),
        at_most(10, what, 1.1, ratios(held[-1], held[0]), kind="memory", **points),
        at_most(10, "that memory", 2, [statistics.median(held[-1]) / 2**30], "GiB"),
    ]  # fmt: skip


def _scenes(folder: Path, rows: int) -> Path:
    sizes = (f"boxes.scenes.train={rows}", "boxes.scenes.validation=50", "boxes.scenes.test=50")
    return prepare(folder, "boxes", *sizes)


def _epoch(folder: Path, data: Path, model: str, *overrides: str) -> float:
    from bench.jobs import job

    one = job(model, folder, "training.epochs=1", *overrides, data=data)
    return one.ours(len(one.batches[0]), tracked=False)


def _memory(folder: Path, data: Path) -> float:
    words = [sys.executable, "-m", "bench.growth", "train", str(folder), str(data)]
    with Memory(words, ROOT) as watched:
        watched.finish()
    return watched.anonymous


def _train(folder: Path, data: Path) -> None:
    from bench.jobs import job

    one = job("cnn", folder, "cnn=simple", "in_memory_limit=1", data=data)
    one.ours(min(STEPS, len(one.batches[0])), tracked=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        _train(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main("growth", measure)
