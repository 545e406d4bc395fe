"""Measure every goal: `python -m bench [--quick] [name …]`; writes docs/performance.md.

Takes about 50 minutes on two cores, and nothing else should run on the machine. Each measurement is
a process of its own: one that fails is a row that says so, the others go on, and the exit status
is 1. Without `--mnist`, the folder of the full MNIST's idx files, rows 1 and 9's images are
skipped; without `--mnist-program`, pytorch/examples' mnist/main.py, `bench.mnist` has its like;
without `--cifar10`, torchvision's folder of CIFAR-10, row 14 is skipped. The environment variables
MNIST, MNIST_PROGRAM and CIFAR10 name them too.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from bench.measure import PAGE, RESULTS, ROOT, Row, options, put, save, show

NUMBERS = {
    "mnist": 1, "overhead": 2, "finetune": 3, "start": 5, "tiny": 6, "noop": 7, "contention": 8,
    "prepare": 9, "growth": 10, "larger": 11, "inference": 12, "tracking": 12, "device": 13,
    "cifar": 14, "detection": 15, "language": 16,
}  # fmt: skip
"""The measurements and the (first) goal of each."""
LIMIT = 1800
"""Seconds after which a measurement hangs."""


def main() -> None:
    """Run the chosen measurements, all by default, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NUMBERS, []], metavar="name")
    given = options(parser)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    failed = {}
    for name in given.names or NUMBERS:
        print(f"bench.{name} …", flush=True)
        started = time.monotonic()
        if why := run(name, given.quick):
            failed[name] = why
            if not given.quick:
                goal = NUMBERS[name]
                save(name, [Row(goal, f"`bench.{name}`", "–", verdict=f"failed: {why}")])
        print(f"bench.{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    if not given.quick:
        print(show([row for rows in kept().values() for row in rows]))
        write_page()
    for name, why in failed.items():
        print(f"bench.{name} failed: {why}; it says more above", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run(name: str, quick: bool, limit: float = LIMIT) -> str | None:
    """Run one measurement; why it failed, or None."""
    words = [sys.executable, "-m", f"bench.{name}", *(["--quick"] if quick else [])]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
    return f"exit status {status}" if status else None


def kept() -> dict[str, list[Row]]:
    """The rows of all measurements that have results, by name."""
    files = {name: RESULTS / f"{name}.json" for name in NUMBERS}
    return {
        name: [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
        for name, file in files.items()
        if file.is_file()
    }


def write_page() -> None:
    """Put the table and the plots of the kept rows between the markers of the page."""
    from bench.plots import draw

    rows = [row for some in kept().values() for row in some]
    machines = sorted(
        {json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["machine"] for name in kept()}
    )
    images = PAGE.parent / "images"
    pictures = [f"![{alt}](images/{name})" for name, alt in draw(rows, images).items()]
    parts = [show(rows), f"`make bench` on {'; '.join(machines)}.", *pictures]
    put(PAGE, "measured", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
