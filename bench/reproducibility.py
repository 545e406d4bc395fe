"""What determinism and saved states cost: `python -m bench.reproducibility`.

Each training stage is started as params.yaml says and measured where its loop would begin, on the
prepared data of the workspace. Times are seconds of CPU of this process, and both costs are ratios
of times taken in turn in one process, so a busy machine changes them little; the time a disk takes
shows in the wall clock's column only. On an accelerator the ratio is the wall clock's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.streams import make_safe

if TYPE_CHECKING:
    from pipeline.training.loop import Loop

ROOT = Path(__file__).parents[1]
STEPS = {
    "train_cnn": 20, "finetune_transformer": 4, "train_rnn": 20, "train_detector": 4,
    "train_language_model": 1,
}  # fmt: skip
"""Of a measurement on a CPU; an accelerator does ten times as many."""
ROUNDS = 7
CPU, WALL = 0, 1
SAVES = 5


def main() -> None:
    """Measure every model and print a table."""
    make_safe()
    print(
        "| stage | deterministic / free, a step | state | a save / an epoch | by the wall clock |"
    )
    print("|---|---|---|---|---|")
    for stage in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "bench.reproducibility", stage],
                cwd=ROOT, env={**os.environ, "DVC_ROOT": folder}, stdout=subprocess.PIPE, text=True,
                check=True,
            )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {stage} | {found['ratio']:.3f} ({found['least']:.3f} to {found['most']:.3f}) | "
            f"{found['bytes'] / 1e6:.1f} MB | "
            f"{found['save'][0] / found['epoch'][0]:.2%} of {found['epoch'][0]:.1f} s | "
            f"{found['save'][1] / found['epoch'][1]:.2%} of {found['epoch'][1]:.1f} s |",
            flush=True,
        )


def measured(loop: "Loop") -> None:
    """Stands in for `Loop.fit`: prints what it measured and ends the process."""
    import torch

    from bench.device import synchronize

    device = loop.hardware.device
    batches = (batch for epoch in range(1000) for batch in loop.train.epoch(epoch))
    loop.wrapped.train()
    clock, times = (CPU, 1) if device.type == "cpu" else (WALL, 10)
    count = STEPS[sys.argv[0]] * times

    def seconds(work: Callable[[], Any]) -> tuple[float, float]:
        synchronize(device)
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        synchronize(device)
        return time.process_time() - cpu, time.perf_counter() - wall

    def steps(deterministic: bool) -> tuple[float, float]:
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        torch.backends.cudnn.deterministic = deterministic
        # it tries kernels on each new shape
        torch.backends.cudnn.benchmark = not deterministic and loop.train.lengths is None
        return seconds(lambda: [loop.step(batches) for _ in range(count)])

    def save(number: int) -> tuple[float, float]:
        loop.progress.step = number  # a step of its own, as after each epoch
        return seconds(loop.save)

    steps(False)  # the first steps allocate, and look for the fastest kernels
    steps(True)
    pairs = [(steps(True), steps(False)) for _ in range(ROUNDS)]
    ratios = [one[clock] / other[clock] for one, other in pairs]
    validated = seconds(lambda: loop.score())
    saves = [save(number) for number in range(1, SAVES + 1)]
    epoch = [
        statistics.median(one[kind] for one, _ in pairs) / count * loop.steps_per_epoch
        + validated[kind]
        for kind in (CPU, WALL)
    ]
    size = max(file.stat().st_size for file in loop.checkpoints.folder.glob("*.pt"))
    found = {
        "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
        "save": [statistics.median(one[kind] for one in saves) for kind in (CPU, WALL)],
        "epoch": epoch, "bytes": size,
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    os._exit(0)


def _child(stage: str, *overrides: str) -> None:
    import importlib

    from pipeline.training.loop import Loop

    Loop.fit = measured  # type: ignore[assignment,method-assign]
    sys.argv = [stage, "tracking=off", "profile=full", *overrides]
    importlib.import_module(f"stages.{stage}").main()


if __name__ == "__main__":
    _child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
