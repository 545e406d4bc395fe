"""Run by test_repeats.py in a process of its own: prepare small data sets into a folder."""

import os
import sys
from pathlib import Path

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.task import find
from tests.data.sources import contents, prepare_small, source


def everything(folder: Path) -> None:
    prepare_small(folder, 100)


def write_images(folder: Path, seed: int) -> None:
    task = find(data="image")
    made = task.prepare.prepare(source("image"), seed, None)
    prepared.write(folder, task.name, made, seed)


def for_ever(folder: Path) -> None:
    """For each line of input, print the id of a new process that writes again and again."""
    task = find(data="image")
    made = task.prepare.prepare(source("image"), 0, None)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            while True:
                prepared.write(folder, task.name, made, 0)
        print(child, flush=True)
        os.waitpid(child, 0)


def until_full(folder: Path) -> None:
    """Write one data set, then another that the disk has no room for beside it."""
    write_images(folder / "image", 0)
    before = contents(folder)
    try:
        write_images(folder / "image", 1)
    except PipelineError as error:
        print(error)
    print(contents(folder) == before, os.listdir(folder))


if __name__ == "__main__":
    {"everything": everything, "for_ever": for_ever, "until_full": until_full}[sys.argv[1]](
        Path(sys.argv[2])
    )
