"""Row 12: what tracking costs a training, per call and as a share of its time.

The tracker is the real one: journal, sender process, sqlite store. Inside a DVC stage, where one
warm sender serves all runs, a training of 60 epochs is timed from the first step to the last; by
hand, where each run has a sender of its own, one of 10 while that imports MLflow. The training
process only writes its journal; all else happens in processes beside it, whose CPU time is read off
too: it is the most by which they can be in the way, and does not waver as seconds do.
"""

import contextlib
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
EPOCHS = 60


def measure(quick: bool) -> list[Row]:
    """5,000 calls some milliseconds apart; the CNN with tracking and without."""
    found = inside_dvc("bench.tracking", "inside", *(["quick"] if quick else []))
    with scratch() as folder:
        os.environ["DVC_ROOT"] = str(folder)
        by_hand = sides(job("cnn", folder), 10 if quick else None, 1 if quick else 3)
        del os.environ["DVC_ROOT"]
    milliseconds = [[1000 * call for call in sorted(some)] for some in found["calls"]]
    typical = [statistics.median(some) for some in milliseconds]
    rare = [some[-max(1, len(some) // 100)] for some in milliseconds]
    cold = [on - off for (on, _), (off, _) in zip(by_hand["on"], by_hand["off"], strict=True)]
    on, off = ([seconds for seconds, _ in found[side]] for side in ("on", "off"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = [100 * cpu / (seconds * (cores or 1)) for seconds, cpu in found["on"]]
    return [
        at_most(12, "one `run.metrics` call, median", 1.0, typical, "ms"),
        at_most(12, "one `run.metrics` call, 99th percentile", 1.0, rare, "ms"),
        at_most(12, "one `run.metrics` call, worst", 1.0, [m[-1] for m in milliseconds], "ms"),
        at_most(12, "training with tracking against off", 1.01, ratios(on, off)),
        at_most(12, "CPU time of its processes, of all there is meanwhile", 1.0, shares, "%"),
        for_comparison(12, "a training by hand, whose sender starts cold, is longer by", cold, "s"),
    ]


def inside(quick: bool) -> dict[str, Any]:
    """Seconds of single calls; of trainings with tracking and without, the tracking's CPU time."""
    one = job("cnn", Path(os.environ["DVC_ROOT"]), f"training.epochs={EPOCHS}")
    calls = [latencies(one, 200 if quick else CALLS) for _ in range(1 if quick else 3)]
    return {"calls": calls, **sides(one, 10 if quick else None, 1 if quick else 8)}


def sides(one: Job, steps: int | None, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a training with tracking and without, in turns, and CPU seconds beside it."""
    seconds(one, 10 if steps else 100, True)  # the first training of a process is slow
    on, off = partial(seconds, one, steps, True), partial(seconds, one, steps, False)
    return alternate({"on": on, "off": off}, rounds)


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


def seconds(one: Job, steps: int | None, tracked: bool) -> tuple[float, float]:
    """Seconds of a training, and CPU seconds of this process's children meanwhile."""
    run, model = _start(one, tracked), one.build()
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), _children()
        fit(
            model, *one.batches, settings=one.settings.training,
            optimizer=one.settings.optimizer, hardware=one.hardware, seed=one.settings.seed,
            checkpoints=Checkpoints(Path(folder)), log=run.metrics, max_steps=steps,
        )  # fmt: skip
        taken, beside = time.perf_counter() - begin, _children() - cpu
    run.end()
    return taken, beside


def _children() -> float:
    """CPU seconds of all children of this process, living and gone."""
    import psutil

    gone = os.times()
    total = gone.children_user + gone.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


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
