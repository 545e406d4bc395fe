"""Row 12: examples per second at inference, against training."""

from dataclasses import replace
from functools import partial

from bench.jobs import Job, job
from bench.measure import Row, alternate, at_least, main, ratios, scratch, timed

CASES = {"CNN": "cnn", "MiniLM": "transformer", "GRU": "rnn", "detector": "detector"}


def measure(quick: bool) -> list[Row]:
    """By the loop's own training and evaluation, in bf16, over the same training split.

    Evaluation takes it in its own larger batches, in order and as it is.
    """
    rows = []
    with scratch() as folder:
        for name, model in CASES.items():
            one = job(model, folder)
            steps = 3 if quick else min(30, len(one.batches[0]))
            found = alternate(
                {"train": partial(train, one, steps), "infer": partial(_infer, one)},
                1 if quick else 5,
            )
            what = f"inference against training, examples/s, {name}"
            rates = {"inference": found["infer"], "this pipeline": found["train"]}
            rows.append(
                at_least(
                    12,
                    what,
                    2.5,
                    ratios(found["infer"], found["train"]),
                    kind="throughput",
                    label=f"{name}, by step",
                    rates=rates,
                )
            )
    return rows


def train(one: Job, steps: int) -> float:
    """Examples per second of so many steps of an epoch, and no scores."""
    return steps * one.settings.training.batch_size / timed(one.loop(steps).run_epoch)


def _infer(one: Job) -> float:
    train, validation = one.batches
    same = replace(train, batch_size=validation.batch_size, shuffle=False, augment=None)
    return same.examples / timed(partial(one.score, one.build(), same))


if __name__ == "__main__":
    main("inference", measure)
