"""What the three training stages share: fit, write, log."""

import csv
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import models
from pipeline.data.batches import Batches
from pipeline.data.prepared import read_card, read_split
from pipeline.files import new_directory, new_file
from pipeline.settings import Train
from pipeline.stage import Context
from pipeline.training import fit


def train(
    settings: Train,
    context: Context,
    model: nn.Module,
    batches: tuple[Batches, Batches],
    description: models.Description,
    tokenizer: Any = None,
) -> float:
    """Fit a model on its (training, validation) batches, write it and its learning curve.

    `description` is what the model was built from. Returns the best validation metric.
    """
    if context.checkpoints is None:
        raise ValueError("train() is for stages whose settings derive from Train")
    run, data, output = context.run, Path(settings.data), Path(settings.output)
    run.input(data, name="data", context="training")

    def log(metrics: dict[str, float], step: int) -> None:
        run.metrics(metrics, step)
        if "validation/loss" in metrics:  # the end of an epoch
            run.sync()

    progress = fit(
        model,
        *batches,
        settings=settings.training,
        optimizer=settings.optimizer,
        hardware=context.hardware,
        seed=settings.seed,
        checkpoints=context.checkpoints,
        log=log,
        max_steps=settings.profile.max_steps,
    )
    if not context.hardware.leads:
        return progress.best
    run.metrics({f"validation/best_{settings.training.monitor}": abs(progress.best)}, progress.step)
    with new_file(Path(settings.curve)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, progress.curve[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.curve)
    with new_directory(output, models.DESCRIPTION) as folder:
        models.save(folder, model, description, tokenizer)
    run.output(output)
    card = read_card(data)
    run.model(output, card.task, card.classes, _example(data, card.task))
    return progress.best


def _example(data: Path, task: str) -> str | bytes:
    """A raw input, as a user of the model would give it: the first one of the validation split."""
    _, table = read_split(data, "validation", task)
    first = table.slice(0, 1).to_pylist()[0]
    example: str | bytes = first["text"] if task == "text" else first[task]["bytes"]
    return example
