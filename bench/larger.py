"""Row 11: a million images in more bytes than the process tree may have, from a mapped file.

The limit is kept without rights over control groups: the kernel refuses private memory beyond it
(RLIMIT_DATA), and a thread in the training process gives pages of the mapped files back to the
kernel, a quarter of a file at a time, whenever all that is resident nears the limit; what is
given back is read from the disk when a batch wants it. What the tree held is sampled from outside.
"""

import ctypes
import json
import os
import re
import resource
import sys
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

from bench.measure import ROOT, Memory, Row, alternate, at_least, at_most, main, ratios, scratch
from bench.synthetic import images

GIB = 2**30
LIMIT = 2 * GIB
BATCH = 256
_SYNC, _PAGEOUT = 4, 21
"""MS_SYNC and MADV_PAGEOUT of Linux, which Python does not name."""


def measure(quick: bool) -> list[Row]:
    """1,000,000 images of 48×48 are 2.3 GB of pixels; each side loads once and trains in turns."""
    steps = 5 if quick else 100
    with scratch() as folder:
        data = images(folder / "data", 2000 if quick else 1_000_000, 48, 1)
        words = [sys.executable, "-m", "bench.larger", str(folder), str(data), str(steps)]
        # Arrow's own allocator reserves a gibibyte, and what is reserved counts.
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        with Memory([*words, str(LIMIT)], ROOT, environment) as disk:
            # Loaded before the other starts: a page that two processes map can't be given back.
            _rate(disk)
            with Memory([*words, "0"], ROOT, environment) as memory:
                _rate(memory)
                sides = {"disk": partial(_rate, disk), "memory": partial(_rate, memory)}
                found = alternate(sides, 1 if quick else 3)
                memory.finish()
            disk.finish()
    what = f"training from the disk under 2 GiB, {steps} steps, against memory without a limit"
    held = f"peak of its process tree, mapped files included, {disk.anonymous / GIB:.2f} anonymous"
    rates = {"from the disk": found["disk"], "this pipeline": found["memory"]}
    return [
        at_least(
            11, what, 0.6, ratios(found["disk"], found["memory"]),
            kind="throughput", label="CNN, 1,000,000 images", rates=rates,
        ),
        at_most(11, held, 2, [disk.all / GIB], "GiB"),
    ]  # fmt: skip


def _rate(process: Memory) -> float:
    return float(json.loads(process.ask("train"))["images_per_second"])


def _serve(folder: Path, data: Path, steps: int, limit: int) -> None:
    """Train some steps for each line of the input."""
    from bench.jobs import job

    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        threading.Thread(target=_give_back, args=(data, limit), daemon=True).start()
    one = job(
        "cnn", folder, f"training.batch_size={BATCH}", "training.epochs=1", "cnn.depth=1",
        f"in_memory_limit={1 if limit else 10**12}", data=data,
    )  # fmt: skip
    for _ in sys.stdin:
        seconds = one.ours(steps, tracked=False)
        print(json.dumps({"images_per_second": BATCH * steps / seconds}), flush=True)


def _give_back(data: Path, limit: int) -> None:
    """Keep the resident memory of this process below `limit`: its private part must be smaller."""
    libc, page = ctypes.CDLL(None), os.sysconf("SC_PAGE_SIZE")
    # the Parquet file, and the decoded pixels in a file without a name beside it
    mapped = re.compile(rf"^(\w+)-(\w+) .* {re.escape(str(data.resolve()))}/")
    for turn in count():
        while int(Path("/proc/self/statm").read_text().split()[1]) * page < 0.85 * limit:
            time.sleep(0.01)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if found := mapped.match(line):
                start, end = int(found[1], 16), int(found[2], 16)
                quarter = (end - start) // 4 // page * page
                first = start + turn % 4 * quarter
                size = (end if turn % 4 == 3 else first + quarter) - first
                part = ctypes.c_void_p(first), ctypes.c_size_t(size)
                libc.msync(*part, _SYNC)  # what is not written yet can't be given back
                libc.madvise(*part, _PAGEOUT)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main("larger", measure)
