"""The results table of the README: the whole default pipeline for several seeds.

python -m bench.results --seeds 0 1 2 --write

Every seed prepares its own splits, trains and evaluates in a temporary folder, by the same
entrypoints that DVC calls; the workspace's outputs are not touched. `--write` puts the table
between the markers in README.md.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.prepared import read_card
from pipeline.report.numbers import BASELINE, Measure, headline
from pipeline.streams import make_safe
from pipeline.task import Task, find, tasks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def main() -> None:
    """Run the seeds and print the table."""
    make_safe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [task.about.model for task in tasks()]
    parser.add_argument("--models", nargs="+", default=names, choices=names, metavar="MODEL")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    if options.write and len(options.models) < len(names):
        parser.error("--write is for the table of all models; leave --models out")
    rows = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            task = find(model=name)
            rows.append(row(task, [run(task, seed, Path(folder)) for seed in options.seeds]))
            print(rows[-1], flush=True)
    table = render(rows, options.seeds)
    print(table)
    if options.write:
        marked = r"(<!-- results -->\n).*?(<!-- /results -->)"
        text = README.read_text(encoding="utf-8")
        README.write_text(re.sub(marked, rf"\g<1>{table}\n\2", text, flags=re.S), encoding="utf-8")


def run(task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """One seed of a task: data and its rows, test metrics, and the seconds of its training."""
    about, where = task.about, folder / str(seed)
    data, weights, curve = where / "data" / about.data, where / about.model, where / "curve.csv"
    _call(
        "prepare", f"modality={about.data}", f"output={data}", f"seed={seed}",
        f"plots={where}/plots/data/{about.data}",
    )  # fmt: skip
    started = time.perf_counter()
    _call(about.stage, f"data={data}", f"output={weights}", f"curve={curve}", f"seed={seed}")
    seconds = time.perf_counter() - started
    metrics = where / "metrics.json"
    switches = {n for n, f in task.settings.Parts.model_fields.items() if f.annotation is bool}
    _call(
        "evaluate", f"model={about.model}", f"data={data}", f"weights={weights}", f"curve={curve}",
        f"metrics={metrics}", f"plots={where}/plots/{about.model}", f"seed={seed}",
        *(f"parts.{part}=false" for part in sorted(switches - {"baselines"})),
    )  # fmt: skip
    card = read_card(data)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in card.splits.items())
    numbers = json.loads(metrics.read_text())
    return {"seconds": seconds, "data": f"`{card.name}`: {rows}", "numbers": numbers}


def row(task: Task, runs: list[dict[str, Any]]) -> str:
    """A task's row of the table in Markdown."""
    about, numbers = task.about, [one["numbers"] for one in runs]
    measure = Measure(about.headline, about.words, about.unit)
    values = [one[about.headline] for one in numbers]
    shown = measure.spread(values) if len(values) > 1 else measure.value(values[0])
    best = headline(numbers[0], about).baseline
    simple = statistics.fmean(one[f"{BASELINE}{best}/{about.headline}"] for one in numbers)
    seconds = statistics.median(one["seconds"] for one in runs)
    return (
        f"| {about.title} (`{about.stage}`) | {runs[0]['data']} | {about.headline} {shown} | "
        f"{measure.value(simple)} ({best}) | {seconds:.0f} s |"
    )


def render(rows: list[str], seeds: list[int]) -> str:
    """The table in Markdown."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "\n".join(
        [
            "| model | data | test | best simple baseline | training stage |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; median seconds "
            f"from process start to saved model. {cores} cores of {_cpu()}, no GPU; "
            f"`python -m bench.results --seeds {' '.join(map(str, seeds))} --write`.",
        ]
    )


def _call(stage: str, *overrides: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", "tracking=off", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return model[1] if model else platform.processor()


if __name__ == "__main__":
    main()
