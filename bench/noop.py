"""Row 7: `dvc repro` with nothing to do, against the smallest graph of as many stages."""

import subprocess
from functools import partial
from pathlib import Path

import yaml

from bench.measure import (
    Row,
    alternate,
    at_most,
    command,
    copy_of_the_repository,
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
        _graph(bare, 9)
        for place in (ours, bare):
            command(ours, ["dvc", "repro", "-q"], cwd=place)
        found = alternate(
            {p.name: partial(command, ours, ["dvc", "repro"], p) for p in (ours, bare)},
            2 if quick else 7,
        )
    what = "no-op `dvc repro` against 9 stages of `true`"
    return [at_most(7, what, 1.3, ratios(found["ours"], found["bare"]))]


def _graph(folder: Path, count: int) -> None:
    stages = {f"s{i}": {"cmd": "true"} for i in range(count)}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(words, cwd=folder, check=True)


if __name__ == "__main__":
    main("noop", measure)
