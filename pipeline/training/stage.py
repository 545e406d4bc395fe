"""The body of every training stage: load, fit, write, log."""

import csv
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.files import new_directory, new_file
from pipeline.prepared import SplitName, read_card
from pipeline.settings import Train
from pipeline.stage import APART, Context, stage
from pipeline.task import Task, find
from pipeline.training import net as nets
from pipeline.training.batches import Batches
from pipeline.training.loop import Loop


def training(name: str) -> Callable[[], None]:
    """The entrypoint of the stage that trains the task of this name."""

    def main() -> None:
        task = find(name=name)
        stage(task.about.stage, lambda: task.settings.Train)(partial(train, task))()

    return main


def train(task: Task, settings: Train, context: Context) -> float:
    """Fit the task's model, write it and its learning curve.

    Returns the best validation score, of one that should fall its negative: a sweep raises it.
    """
    if context.checkpoints is None:
        raise ValueError("train() is for stages whose settings derive from Train")
    run, hardware, data = context.run, context.hardware, Path(settings.data)
    card = read_card(data, task.name)
    net = nets.build(task, getattr(settings, task.about.model), card.facts)

    def batches(split: SplitName, times: int, **order: Any) -> Batches:
        order |= {"batch_size": settings.training.batch_size * times, "seed": settings.seed}
        # apart, so that `loading` can't take the place of what every training sets
        return task.data.load(data, split, net, device=hardware.device, **order, **settings.loading)

    train = batches("train", 1, shuffle=True, shard=hardware.shard)
    validation = batches("validation", 4)
    run.input(data, name="data", context="training")

    def log(metrics: dict[str, float], step: int) -> None:
        run.metrics(metrics, step)
        if "time/epoch_seconds" in metrics:
            run.sync()

    progress = Loop(
        net.module,
        train,
        validation,
        task=task.model,
        falling=task.about.falling,
        settings=settings.training,
        optimizer=settings.optimizer,
        hardware=hardware,
        seed=settings.seed,
        checkpoints=context.checkpoints,
        log=log,
        max_steps=settings.profile.max_steps,
    ).fit()
    monitor = settings.training.monitor
    best = -progress.best if monitor in task.about.falling else progress.best
    if not hardware.leads:
        return progress.best
    run.metrics({f"validation/best_{monitor}": best}, progress.step)
    with new_file(Path(settings.curve)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, progress.curve[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.curve)
    with new_directory(Path(settings.output), nets.DESCRIPTION) as folder:
        nets.save(folder, _written(net, context))
    run.output(Path(settings.output))
    with tempfile.TemporaryDirectory() as place:
        run.model(
            carried(net, Path(settings.output), Path(place)),
            code=shipped(task, Path(place)),
            packages=task.about.packages,
            example=task.data.example(data),
            facts={"task": task.name, **card.facts.model_dump(mode="json")},
        )
    return progress.best


def carried(net: nets.Net, folder: Path, place: Path) -> Path:
    """The folder of a model, or a copy of it in `place` with what else it needs elsewhere."""
    if not hasattr(net.task.model, "carried") or not (files := net.task.model.carried(net)):
        return folder
    copy = shutil.copytree(folder, place / "served" / folder.name)
    for name, file in files.items():
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy / name)
    return copy


def _written(net: nets.Net, context: Context) -> nets.Net:
    """With references in the place of what came from the environment."""

    def hidden(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: hidden(inner) for name, inner in value})
        if isinstance(value, dict):
            return {name: hidden(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(hidden, value))
        return context.written.conceal(value) if isinstance(value, str) else value

    return replace(net, settings=hidden(net.settings))


def shipped(task: Task, folder: Path) -> Path:
    """The part of this package that a served model needs, copied into a folder."""
    package = Path(__file__).parents[1]

    def ignored(place: str, names: list[str]) -> set[str]:
        folders = Path(place).relative_to(package).parts
        if folders == ("tasks",):
            return set(names) - {"__init__.py", task.name}
        return {"__pycache__"} | (set() if folders[:1] == ("tasks",) else APART)

    return shutil.copytree(package, folder / package.name, ignore=ignored)
