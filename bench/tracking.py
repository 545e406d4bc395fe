"""Row 12: what tracking costs a training, per call and as a share of its time.

The tracker is the real one: journal, sender process, sqlite store. Inside a DVC stage, where one
warm sender serves all runs, pairs of trainings, one tracked and one not, take turns of 5 epochs:
while one runs, the other and what belongs to it is stopped, so that both meet the same moods of the
machine. (The clocks of what is stopped run on, so it samples and sends up to twice as often for a
second of training as otherwise: the ratio is rather too high.) By hand, where each run has a sender
of its own, whole trainings of 10 epochs are timed while that imports MLflow. The training process
only writes its journal; all else happens in processes beside it, whose CPU time over a whole
training of 60 epochs is read off too: it is the most by which they can be in the way, and does not
waver as seconds do.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

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
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import card
from pipeline.training.loop import Loop

CALLS = 5000
EPOCHS = 60
TURN, TURNS, PAIRS = 5, 6, 6
"""Epochs of a turn, turns of each training, and pairs of trainings: no two processes are equally
fast, if only by where their memory lies."""


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
    on, off = ([pair[side] for pair in found["pairs"]] for side in ("tracked", "bare"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = [100 * cpu / (seconds * (cores or 1)) for seconds, cpu in found["whole"]]
    synced = [1000 * call for call in found["syncs"]]
    return [
        at_most(12, "one `run.metrics` call, median", 1.0, typical, "ms"),
        at_most(12, "one `run.metrics` call, 99th percentile", 1.0, rare, "ms"),
        at_most(12, "one `run.metrics` call, worst", 1.0, [m[-1] for m in milliseconds], "ms"),
        for_comparison(12, "one `run.sync` call, an `fsync` at an epoch's end", synced, "ms"),
        at_most(12, "training with tracking against off, in turns", 1.01, ratios(on, off)),
        at_most(12, "CPU time of its processes, of all there is meanwhile", 1.0, shares, "%"),
        for_comparison(12, "memory of the sender", found["memory"], "MB"),
        for_comparison(12, "a training by hand, whose sender starts cold, is longer by", cold, "s"),
    ]


def inside(quick: bool) -> dict[str, Any]:
    """Seconds of single calls, of turns, and of whole trainings with the CPU seconds beside."""
    one = job("cnn", Path(os.environ["DVC_ROOT"]), f"training.epochs={EPOCHS}")
    rounds = 1 if quick else 3
    latencies(one, 10)  # the first run of a dvc process starts its sender
    calls = [latencies(one, 200 if quick else CALLS) for _ in range(rounds)]
    whole = [seconds(one, 10 if quick else None, True) for _ in range(rounds)]
    return {
        "calls": [metrics for metrics, _ in calls],
        "syncs": [sync for _, some in calls for sync in some],
        "whole": whole,
        "memory": [sender.memory_info().rss / 1e6 for sender in _senders()],
        "pairs": [in_turns(1 if quick else TURNS) for _ in range(1 if quick else PAIRS)],
    }


def in_turns(turns: int) -> dict[str, float]:
    """Seconds that the turns of a tracked training took, and those of one that is not."""
    spawn = multiprocessing.get_context("spawn")
    ends, processes = {}, []
    for name in ("tracked", "bare"):
        ends[name], other = spawn.Pipe()
        arguments = other, name == "tracked", turns
        processes.append(spawn.Process(target=_take_turns, args=arguments, daemon=True))
        processes[-1].start()
        other.close()  # so that a process that fails ends the wait for it
    found: dict[str, list[float]] = {name: [] for name in ends}
    for turn in range(turns + 2):
        for name in ends if turn % 2 else reversed(ends):
            with contextlib.nullcontext() if name == "tracked" else _stopped_senders():
                ends[name].send("go")
                found[name].append(ends[name].recv())
    for process in processes:
        process.join()
    return {name: sum(some[1:-1]) for name, some in found.items()}  # without begin and end


def _take_turns(controls: Connection, tracked: bool, turns: int) -> None:
    """Train as a stage does; after each turn say how long it took and wait for the next."""
    epochs = TURN * (turns + 2)
    one = job("cnn", Path(os.environ["DVC_ROOT"]), f"training.epochs={epochs}")
    run, epoch = _start(one, tracked), 0
    controls.recv()
    begin = time.perf_counter()

    def log(metrics: dict[str, float], step: int) -> None:
        nonlocal begin, epoch
        _log(run)(metrics, step)
        epoch += "validation/loss" in metrics
        if "validation/loss" in metrics and epoch % TURN == 0:
            controls.send(time.perf_counter() - begin)
            if epoch < epochs:
                controls.recv()
            begin = time.perf_counter()

    _fit(one, log, None)
    run.end()


@contextlib.contextmanager
def _stopped_senders() -> Iterator[None]:
    """What runs beside the tracked training does not run while the other one does."""
    senders = _senders()
    for sender in senders:
        sender.suspend()
    try:
        yield
    finally:
        for sender in senders:
            with contextlib.suppress(psutil.NoSuchProcess):
                sender.resume()


def _senders() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
            if "pipeline.tracking.sender" in child.cmdline():
                found.append(child)
    return found


def sides(one: Job, steps: int | None, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a training with tracking and without, in turns, and CPU seconds beside it."""
    seconds(one, 10 if steps else 100, True)  # the first training of a process is slow
    on, off = partial(seconds, one, steps, True), partial(seconds, one, steps, False)
    return alternate({"on": on, "off": off}, rounds)


def latencies(one: Job, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each `metrics` call, and of a `sync` after every hundred."""
    run, found, syncs = _start(one, True), list[float](), list[float]()
    for step in range(count):
        begin = time.perf_counter()
        run.metrics({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step=step)
        found.append(time.perf_counter() - begin)
        if step % 100 == 99:
            begin = time.perf_counter()
            run.sync()
            syncs.append(time.perf_counter() - begin)
        time.sleep(0.002)
    run.end()
    return found, syncs


def seconds(one: Job, steps: int | None, tracked: bool) -> tuple[float, float]:
    """Seconds of a training, and CPU seconds of this process's children meanwhile."""
    begin, cpu = time.perf_counter(), _children()
    run = _start(one, tracked)
    _fit(one, _log(run), steps)
    taken, beside = time.perf_counter() - begin, _children() - cpu
    run.end()
    return taken, beside


def _fit(one: Job, log: Callable[[dict[str, float], int], None], steps: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Loop(
            one.build().module, *one.batches, task=one.task.model, settings=one.settings.training,
            optimizer=one.settings.optimizer, hardware=one.hardware, seed=one.settings.seed,
            checkpoints=Checkpoints(Path(folder)), log=log, max_steps=steps,
        ).fit()  # fmt: skip


def _log(run: tracking.Run) -> Callable[[dict[str, float], int], None]:
    """What `pipeline.training.stage` hands to the loop."""

    def log(metrics: dict[str, float], step: int) -> None:
        run.metrics(metrics, step)
        if "time/epoch_seconds" in metrics:
            run.sync()

    return log


def _children() -> float:
    """CPU seconds of all children of this process, living and gone."""
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
