"""Row 11: a million images, more bytes than the process may have, from a memory-mapped file."""

import json
import os
import resource
import sys
from functools import partial
from pathlib import Path

from bench.measure import ROOT, Row, alternate, answer, at_least, main, ratios, scratch
from bench.synthetic import images

GIB = 2**30


def measure(quick: bool) -> list[Row]:
    """1,000,000 images of 48×48 are 2.3 GB; the limit of 2 GiB holds for all but mapped files."""
    with scratch() as folder:
        data = images(folder / "data", 2000 if quick else 1_000_000, 48, 1)
        steps = 5 if quick else 200
        found = alternate(
            {
                "disk": partial(_rate, folder, data, steps, limit=2 * GIB),
                "memory": partial(_rate, folder, data, steps, limit=0),
            },
            1 if quick else 3,
        )
    what = "training from the disk under a 2 GiB limit, against memory without one"
    return [at_least(11, what, 0.6, ratios(found["disk"], found["memory"]))]


def _rate(folder: Path, data: Path, steps: int, limit: int) -> float:
    # The limit counts what is reserved too, and Arrow's own allocator reserves a gibibyte.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    arguments = [str(folder), str(data), str(steps), str(limit)]
    return float(answer("bench.larger", *arguments, cwd=ROOT)["images_per_second"])


def _train(folder: Path, data: Path, steps: int, limit: int) -> None:
    from bench.jobs import job
    from bench.measure import timed

    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    bytes_held = 1 if limit else 10**12
    one = job(
        "cnn", folder, "training.batch_size=256", "training.epochs=1",
        f"in_memory_limit={bytes_held}", "cnn.depth=1", data=data,
    )  # fmt: skip
    seconds = timed(partial(one.ours, steps, tracked=False))
    print(json.dumps({"images_per_second": 256 * steps / seconds}))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        _train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main("larger", measure)
