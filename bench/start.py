"""Row 5: from the start of a training stage's process to its first optimizer step."""

import os
import runpy
import sys
import time
from functools import partial
from pathlib import Path

from bench.measure import Row, alternate, at_most, command, main, prepare, scratch

STAGES = {"train_cnn": "image", "finetune_transformer": "text", "train_rnn": "audio"}


def measure(quick: bool) -> list[Row]:
    """The second and later starts: files are in the page cache, as on a machine in use."""
    with scratch() as folder:
        data = {
            modality: prepare(folder, modality, *(["profile=tiny"] if quick else []))
            for modality in STAGES.values()
        }
        found = alternate(
            {name: partial(start, folder, name, data[STAGES[name]]) for name in STAGES},
            2 if quick else 5,
        )
    return [
        at_most(5, f"start of `{name}` to its first step", 3, seconds[1:], "s")
        for name, seconds in found.items()
    ]


def start(folder: Path, stage: str, data: Path) -> float:
    """Seconds from the start of the process to the end of its first optimizer step."""
    words = [sys.executable, "-m", "bench.start", stage, f"data={data}"]
    return command(folder, [*words, f"output={folder}/m", f"curve={folder}/c.csv"])


def _until_the_first_step(stage: str) -> None:
    """Run a stage in this process and end it when the optimizer has stepped."""
    from pipeline.training.adamw import AdamW

    step = AdamW.step

    def only(self: AdamW, clip_norm: float | None = None) -> None:
        step(self, clip_norm)
        os._exit(0)

    AdamW.step = only  # type: ignore[method-assign]
    runpy.run_module(f"stages.{stage}", run_name="__main__")
    time.sleep(1)
    sys.exit("no step was made")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STAGES:
        _until_the_first_step(sys.argv.pop(1))
    else:
        main("start", measure)
