"""Row 2: `fit()`, with tracking and checkpoints, against a bare loop of the same arithmetic."""

import os
from functools import partial

from bench.jobs import job
from bench.measure import Row, alternate, at_most, main, ratios, scratch, timed

CASES = {
    "CNN, batch 64": ("cnn", ["training.batch_size=64"], 112),
    "CNN, batch 512": ("cnn", ["training.batch_size=512"], 21),
    "GRU": ("rnn", [], 70),
    "MiniLM": ("transformer", [], 186),
}


def measure(quick: bool) -> list[Row]:
    """Two epochs of each (MiniLM: one), validation included on both sides."""
    rows = []
    with scratch() as folder:
        os.environ["DVC_ROOT"] = str(folder)
        for name, (model, overrides, steps) in CASES.items():
            one, count = job(model, folder, *overrides), 3 if quick else steps
            found = alternate(
                {
                    "ours": partial(timed, partial(one.ours, count, tracked=True)),
                    "bare": partial(timed, partial(one.bare, count)),
                },
                1 if quick else 5 if model != "transformer" else 3,
            )
            what = f"`fit()` against a bare loop, {name}"
            rows.append(at_most(2, what, 1.03, ratios(found["ours"], found["bare"])))
        del os.environ["DVC_ROOT"]
    return rows


if __name__ == "__main__":
    main("overhead", measure)
