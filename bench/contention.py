"""Row 8: a training stage while another process keeps one core busy."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.measure import Row, alternate, at_most, main, prepare, ratios, scratch, stage

STEPS = {
    "train_cnn": ("image", 540),
    "finetune_transformer": ("text", 40),
    "train_rnn": ("audio", 200),
}


def measure(quick: bool) -> list[Row]:
    """Whole stages, capped in their steps; the other process has the first core."""
    rows = []
    with scratch() as folder:
        for name, (modality, steps) in STEPS.items():
            data = prepare(folder, modality, *(["profile=tiny"] if quick else []))
            call = partial(
                stage, folder, name, f"data={data}", f"output={folder}/m", "tracking=off",
                f"curve={folder}/c.csv", f"profile.max_steps={2 if quick else steps}",
            )  # fmt: skip
            found = alternate({"beside": partial(beside, call), "alone": call}, 1 if quick else 2)
            what = f"`{name}` beside a busy process"
            rows.append(at_most(8, what, 2.5, ratios(found["beside"], found["alone"])))
    return rows


def beside(call: Callable[[], float]) -> float:
    """Call while another process, of the same priority, computes on the first core."""
    with _busy():
        return call()


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    code = code if hasattr(os, "sched_setaffinity") else "while True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path("/"))
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main("contention", measure)
