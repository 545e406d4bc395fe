"""Row 7: `dvc repro` with nothing to do, against the smallest graph of as many stages."""

import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import yaml

from bench.measure import (
    Row,
    alternate,
    at_most,
    command,
    copy_of_the_repository,
    for_comparison,
    main,
    ratios,
    scratch,
)  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """The pipeline runs once, tiny, before."""
    with scratch() as folder:
        ours, bare = folder / "ours", folder / "bare"
        ours.mkdir()
        bare.mkdir()
        copy_of_the_repository(ours)
        params = (ours / "params.yaml").read_text(encoding="utf-8")
        (ours / "params.yaml").write_text(params.replace("profile: full", "profile: tiny"))
        listed = subprocess.check_output(
            [sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=ours
        )
        count = len(listed.split())
        _graph(bare, count)
        for place in (ours, bare):
            command(ours, ["dvc", "repro", "-q"], cwd=place)
        cpu: dict[str, list[float]] = {"ours": [], "bare": []}

        def repro(place: Path) -> float:
            before = os.times()
            seconds = command(ours, ["dvc", "repro"], place)
            after = os.times()
            used = after.children_user + after.children_system
            cpu[place.name].append(used - before.children_user - before.children_system)
            return seconds

        found = alternate(
            {p.name: partial(repro, p) for p in (ours, bare)}, 2 if quick else 7
        )  # fmt: skip
    seconds = statistics.median(found["ours"])
    what = f"no-op `dvc repro`, {seconds:.2f} s, against {count} `true` stages"
    return [
        at_most(7, what, 1.3, ratios(found["ours"], found["bare"])),
        for_comparison(7, "the same in CPU seconds", ratios(cpu["ours"], cpu["bare"])),
    ]


def _graph(folder: Path, count: int) -> None:
    stages = {f"s{i}": {"cmd": "true"} for i in range(count)}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        command(folder, words, folder)


if __name__ == "__main__":
    main("noop", measure)
