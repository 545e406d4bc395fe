"""What every stage does around its body: config, hardware, tracking, errors, signals."""

import csv
import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pipeline import config, interrupts, models, tracking
from pipeline.checkpoint import Checkpoints, checkpoints
from pipeline.data.batches import Batches
from pipeline.data.prepared import read_card, read_split
from pipeline.files import new_directory, new_file
from pipeline.hardware import Hardware, card, configure
from pipeline.settings import Stage, Train
from pipeline.training import fit

S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class Context:
    """What a stage's body is handed besides its settings.

    Attributes:
        run: the MLflow run of this execution.
        hardware: device, precision and threads.
        checkpoints: training stages only: the saved states of this very training.
    """

    run: tracking.Run
    hardware: Hardware
    checkpoints: Checkpoints | None = None


def stage(
    name: str, schema: type[S]
) -> Callable[[Callable[[S, Context], float | None]], Callable[[], None]]:
    """Make an entrypoint of a stage's body.

    The entrypoint composes and checks the config, configures the hardware, opens the MLflow run
    (for a training that was killed, its own run again), calls the body and closes the run:
    FINISHED, FAILED with the error as a tag, or KILLED by a signal. Exit status: 0; 1 after an
    error; 128 + n after signal n. The value the body returns is the objective of a Hydra sweep.
    """

    def decorate(body: Callable[[S, Context], float | None]) -> Callable[[], None]:
        def task(settings: S) -> float | None:
            try:
                with interrupts.handled():
                    return _execute(name, settings, body)
            except interrupts.Interrupted as interrupted:
                print(f"{name}: {interrupted}", file=sys.stderr)
                raise SystemExit(128 + interrupted.number) from None

        return lambda: config.main(name, schema, task)

    return decorate


def _execute(name: str, settings: S, body: Callable[[S, Context], float | None]) -> float | None:
    # torchrun and accelerate start one process per device; the first of them keeps the records.
    leads = os.environ.get("RANK", "0") == "0"
    with ExitStack() as stack:
        states, journal = None, tracking.new_id(name)
        if isinstance(settings, Train):
            identity = {
                "config": settings.model_dump(exclude={"tracking"}),
                "data": read_card(Path(settings.data)).digest,
                "code": _digest_of_code(),
            }
            folder = tracking.root() / ".checkpoints"
            states = stack.enter_context(checkpoints(folder, name, identity, leads))
            journal = states.recall("journal") or journal
            if leads:  # before the run begins: a kill in between must not leave a second run
                states.remember("journal", journal)
        hardware = configure(settings)
        if not leads or (states and states.recall("finished")):
            # Killed between the end of its run and its own: only the outputs are missing.
            run = tracking.Run()
        else:
            run = tracking.start(
                stage=name,
                settings=settings.tracking,
                config=settings.model_dump(),
                card=card(hardware),
                id=journal,
            )
        try:
            result = body(settings, Context(run, hardware, states))
        except BaseException as error:
            ended = isinstance(error, interrupts.Interrupted | KeyboardInterrupt)
            run.end("KILLED" if ended else "FAILED", error=f"{type(error).__name__}: {error}")
            raise
        if states and leads:
            states.remember("finished", True)
        run.end("FINISHED")
        return result


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
    run, data = context.run, Path(settings.data)
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
    if not context.hardware.accelerator.is_main_process:
        return progress.best
    run.metrics({f"validation/best_{settings.training.monitor}": abs(progress.best)}, progress.step)
    with new_file(Path(settings.curve)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, progress.curve[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.curve)
    with new_directory(Path(settings.output)) as folder:
        models.save(folder, model, description, tokenizer)
    run.output(Path(settings.output))
    card = read_card(data)
    run.model(Path(settings.output), card.task, card.classes, _example(data, card.task))
    return progress.best


def _example(data: Path, task: str) -> str | bytes:
    """A raw input, as a user of the model would give it: the first one of the validation split."""
    _, table = read_split(data, "validation", task)
    first = table.slice(0, 1).to_pylist()[0]
    example: str | bytes = first["text"] if task == "text" else first[task]["bytes"]
    return example


def _digest_of_code() -> str:
    """sha256 of the modules that decide what a training computes."""
    package = config.ROOT / "pipeline"
    apart = {"evaluation", "figures", "report", "tracking"}
    sources = [
        file
        for file in sorted(package.rglob("*.py"))
        if file.relative_to(package).parts[0] not in apart
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
