"""Row 2: `fit()`, with tracking and checkpoints, against a bare loop of the same arithmetic.

Measured inside a DVC stage, where the sender of the runs is warm; what a cold one costs a training
by hand is in `bench.tracking`.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.jobs import job
from bench.measure import Row, alternate, at_most, inside_dvc, main, ratios

CASES = {
    "CNN, batch 64": ("cnn", ["training.batch_size=64"], 540),
    "CNN, batch 512": ("cnn", ["training.batch_size=512", "training.epochs=30"], 180),
    "GRU": ("rnn", [], 420),
    "MiniLM": ("transformer", [], 186),
}


def measure(quick: bool) -> list[Row]:
    """The default trainings (of MiniLM one epoch); both sides validate after each epoch."""
    rows = []
    sides = inside_dvc("bench.overhead", "inside", *(["quick"] if quick else []))
    for name, found in sides.items():
        rates = {
            title: [found["examples"] / seconds for seconds in found[side]]
            for side, title in (("ours", "this pipeline"), ("bare", "bare loop"))
        }
        what = f"`fit()` against a bare loop, {name}"
        both = ratios(found["ours"], found["bare"])
        label = f"{name}, fit()"
        rows.append(at_most(2, what, 1.03, both, kind="throughput", label=label, rates=rates))
    return rows


def inside(quick: bool) -> dict[str, Any]:
    """Seconds of both sides by case, and the examples that were trained on in them."""
    folder, cases = Path(os.environ["DVC_ROOT"]), {}
    for name, (model, overrides, steps) in CASES.items():
        one, count = job(model, folder, *overrides), 3 if quick else steps
        one.ours(3, tracked=True)  # the first steps of a process, and its first run, are slow
        one.bare(3)
        ours, rounds = partial(one.ours, count, tracked=True), 3 if model == "transformer" else 5
        found = alternate({"ours": ours, "bare": partial(one.bare, count)}, 1 if quick else rounds)
        cases[name] = {**found, "examples": count * one.settings.training.batch_size}
    return cases


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        print(json.dumps(inside(len(sys.argv) > 2)))
    else:
        main("overhead", measure)
