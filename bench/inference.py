"""Row 12: examples per second at inference, against training."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.jobs import Job, job
from bench.measure import Row, alternate, at_least, main, ratios, scratch, timed
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Loop


def measure(quick: bool) -> list[Row]:
    """By the loop's own training and evaluation, in bf16, over the same training split.

    Evaluation takes it in its own larger batches, in order and as it is.
    """
    rows = []
    with scratch() as folder:
        for name, model in (("CNN", "cnn"), ("MiniLM", "transformer"), ("GRU", "rnn")):
            one = job(model, folder)
            found = alternate(
                {"train": partial(_train, one, quick), "infer": partial(_infer, one)},
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


def _train(one: Job, quick: bool) -> float:
    batches, settings = one.batches[0], one.settings
    loop = Loop(
        one.build().module, *one.batches, task=one.task.model, settings=settings.training,
        optimizer=settings.optimizer, hardware=one.hardware, seed=settings.seed,
        checkpoints=Checkpoints(Path()), log=lambda *_: None,
    )  # fmt: skip
    loop.model.train()
    epoch, steps = batches.epoch(0), 3 if quick else min(30, len(batches))

    def run() -> None:
        for _ in range(steps):
            loss = loop.step(epoch)
        float(loss)  # waits for the device

    return steps * batches.batch_size / timed(run)


def _infer(one: Job) -> float:
    train, validation = one.batches
    same = replace(train, batch_size=validation.batch_size, shuffle=False, augment=None)
    return same.examples / timed(partial(one.score, one.build(), same))


if __name__ == "__main__":
    main("inference", measure)
