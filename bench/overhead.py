"""Row 2: `fit()`, with tracking and checkpoints, against a bare loop of the same arithmetic."""

import os
from functools import partial

from bench.jobs import job
from bench.measure import Row, alternate, at_most, main, ratios, scratch

CASES = {
    "CNN, batch 64": ("cnn", ["training.batch_size=64"], 540),
    "CNN, batch 512": ("cnn", ["training.batch_size=512"], 60),
    "GRU": ("rnn", [], 70),
    "MiniLM": ("transformer", [], 186),
}


def measure(quick: bool) -> list[Row]:
    """Ten epochs of the CNN, two of the GRU, one of MiniLM; both sides validate after each."""
    rows = []
    with scratch() as folder:
        os.environ["DVC_ROOT"] = str(folder)
        for name, (model, overrides, steps) in CASES.items():
            one, count = job(model, folder, *overrides), 3 if quick else steps
            one.ours(3, tracked=False)  # the first steps of a process are slow
            one.bare(3)
            found = alternate(
                {
                    "ours": partial(one.ours, count, tracked=True),
                    "bare": partial(one.bare, count),
                },
                1 if quick else 5 if model != "transformer" else 3,
            )
            examples = count * one.settings.training.batch_size
            rates = {
                title: [examples / seconds for seconds in found[side]]
                for side, title in (("ours", "this pipeline"), ("bare", "bare loop"))
            }
            what = f"`fit()` against a bare loop, {name}"
            rows.append(
                at_most(
                    2,
                    what,
                    1.03,
                    ratios(found["ours"], found["bare"]),
                    kind="throughput",
                    label=f"{name}, fit()",
                    rates=rates,
                )
            )
        del os.environ["DVC_ROOT"]
    return rows


if __name__ == "__main__":
    main("overhead", measure)
