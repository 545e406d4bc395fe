"""Row 12: what tracking costs a training, per call and as a share of its time.

The tracker is the real one: journal, sender process, sqlite store. Inside a DVC stage, where one
warm sender serves all runs, a training is timed from the first step to the last; by hand, where
each run has a sender of its own, the same while that imports MLflow.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.jobs import Job, job
from bench.measure import (
    Row,
    alternate,
    at_most,
    for_comparison,
    inside_dvc,
    main,
    ratios,
    scratch,
)  # fmt: skip
from pipeline import tracking
from pipeline.checkpoint import Checkpoints
from pipeline.hardware import card
from pipeline.training import fit

CALLS = 5000
STEPS = 1120


def measure(quick: bool) -> list[Row]:
    """5,000 calls some milliseconds apart; the CNN with tracking and without."""
    found = inside_dvc("bench.tracking", "inside", *(["quick"] if quick else []))
    with scratch() as folder:
        os.environ["DVC_ROOT"] = str(folder)
        by_hand = sides(job("cnn", folder, "training.log_every=1"), 10 if quick else 540, quick, 3)
        del os.environ["DVC_ROOT"]
    milliseconds = [[1000 * call for call in sorted(some)] for some in found["calls"]]
    typical = [statistics.median(some) for some in milliseconds]
    rare = [some[-max(1, len(some) // 100)] for some in milliseconds]
    cold = [on - off for on, off in zip(by_hand["on"], by_hand["off"], strict=True)]
    return [
        at_most(12, "one `run.metrics` call, median", 1.0, typical, "ms"),
        at_most(12, "one `run.metrics` call, 99th percentile", 1.0, rare, "ms"),
        at_most(12, "one `run.metrics` call, worst", 1.0, [m[-1] for m in milliseconds], "ms"),
        at_most(12, "training with tracking against off", 1.01, ratios(found["on"], found["off"])),
        for_comparison(12, "a training by hand, whose sender starts cold, is longer by", cold, "s"),
    ]


def inside(quick: bool) -> dict[str, Any]:
    """Seconds of single calls, and of trainings with tracking on and off."""
    one = job("cnn", Path(os.environ["DVC_ROOT"]), "training.log_every=1")
    calls = [latencies(one, 200 if quick else CALLS) for _ in range(1 if quick else 3)]
    return {"calls": calls, **sides(one, 10 if quick else STEPS, quick, 5)}


def sides(one: Job, steps: int, quick: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training with tracking and without, in turns."""
    seconds(one, 10 if quick else 100, True)  # the first training of a process is slow
    on, off = partial(seconds, one, steps, True), partial(seconds, one, steps, False)
    return alternate({"on": on, "off": off}, 1 if quick else rounds)


def latencies(one: Job, count: int) -> list[float]:
    """Seconds of each call."""
    run, found = _start(one, True), []
    for step in range(count):
        begin = time.perf_counter()
        run.metrics({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step=step)
        found.append(time.perf_counter() - begin)
        time.sleep(0.002)
    run.end()
    return found


def seconds(one: Job, steps: int, tracked: bool) -> float:
    """Seconds of `steps` steps that log each."""
    run, model = _start(one, tracked), one.build()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        fit(
            model, *one.batches, settings=one.settings.training,
            optimizer=one.settings.optimizer, hardware=one.hardware, seed=one.settings.seed,
            checkpoints=Checkpoints(Path(folder)), log=run.metrics, max_steps=steps,
        )  # fmt: skip
        taken = time.perf_counter() - begin
    run.end()
    return taken


def _start(one: Job, tracked: bool) -> tracking.Run:
    return tracking.start(
        stage="bench",
        settings=one.settings.tracking.model_copy(update={"enabled": tracked}),
        config=one.settings.model_dump(),
        card=card(one.hardware),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        print(json.dumps(inside(len(sys.argv) > 2)))
    else:
        main("tracking", measure)
