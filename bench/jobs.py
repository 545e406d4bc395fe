"""The trainings inside this process, by our loop and by a bare one."""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  # isort: skip (as in a stage: sets what torch reads when imported)
import torch
from torch import nn

from bench.measure import prepare
from pipeline import config, tracking
from pipeline.prepared import read_card
from pipeline.settings import Train
from pipeline.task import Task, find
from pipeline.training import net as nets
from pipeline.training.adamw import schedule
from pipeline.training.batches import Batch, Batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import Hardware, card, configure
from pipeline.training.loop import Log, Loop
from pipeline.training.modules import score


@dataclass(frozen=True)
class Job:
    """A training as a stage would run it.

    Attributes:
        task: what is trained.
        settings: of the stage.
        hardware: configured.
        build: a model on the device with the same initial weights at each call.
        batches: training and validation.
    """

    task: Task
    settings: Train
    hardware: Hardware
    build: Callable[[], nets.Net]
    batches: tuple[Batches, Batches]

    def ours(self, steps: int, tracked: bool, net: nets.Net | None = None) -> float:
        """Seconds of `fit`, which saves its state to the disk and, if `tracked`, logs a run.

        What a run does before and after is not in them; rows 1 and 5 have it.
        """
        settings = self.settings
        if steps > settings.training.epochs * len(self.batches[0]):
            raise ValueError(f"{steps} steps are more than the epochs of the config have")
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            run = tracking.start(
                stage="bench",
                settings=settings.tracking.model_copy(update={"enabled": tracked}),
                config=settings.model_dump(),
                card=card(self.hardware),
            )
            started = time.perf_counter()
            self.loop(steps, net, Path(folder), run.metrics).fit()
            seconds = time.perf_counter() - started
            run.end("FINISHED")
        return seconds

    def loop(
        self,
        steps: int | None = None,
        net: nets.Net | None = None,
        folder: Path = Path(),
        log: Log = lambda *_: None,
    ) -> Loop:
        """The training's loop, which saves its states in `folder`."""
        settings = self.settings
        return Loop(
            (net or self.build()).module, *self.batches, task=self.task.model,
            falling=self.task.about.falling, settings=settings.training,
            optimizer=settings.optimizer, hardware=self.hardware, seed=settings.seed,
            checkpoints=Checkpoints(folder), log=log, max_steps=steps,
        )  # fmt: skip

    def bare(self, steps: int) -> float:
        """Seconds of the same arithmetic as a tutorial would write it."""
        started = time.perf_counter()
        settings, net = self.settings.training, self.build()
        model = net.module
        model.train()
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            weight_decay=self.settings.optimizer.weight_decay,
            betas=tuple(self.settings.optimizer.betas),
            fused=True,
        )
        half = self.hardware.precision == "fp16"
        scaler = torch.amp.GradScaler(self.hardware.device.type, enabled=half)
        step, epoch = 0, 0
        while step < steps:
            for batch in self.batches[0].epoch(epoch):
                rate = schedule(step, steps, settings.schedule, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = self.settings.optimizer.lr * rate
                scaler.scale(self.loss(model, batch)).backward()
                if settings.clip_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                step += 1
                if step == steps:
                    break
            epoch += 1
            self.score(net, self.batches[1])
            model.train()
        return time.perf_counter() - started

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss of a batch."""
        with self.hardware.autocast():
            return self.task.model.loss(model, batch, self.settings.training)

    def score(self, net: nets.Net, batches: Batches) -> dict[str, float]:
        """The scores of a network over a split."""
        return score(net.module, batches, self.task.model, self.settings.training, self.hardware)


def job(model: str, folder: Path, *overrides: str, data: Path | None = None) -> Job:
    """A training by the config as it stands, changed by Hydra overrides."""
    task = find(model=model)
    if data is None:
        data = folder / "data" / task.about.data
        if not data.exists():
            prepare(folder, task.about.data)
    settings = composed(model, f"data={data}", *overrides)
    hardware = configure(settings)
    facts = read_card(data).facts

    def build() -> nets.Net:
        torch.manual_seed(settings.seed)
        net = nets.build(task, getattr(settings, model), facts)
        net.module.to(hardware.device)
        return net

    net, size = build(), settings.training.batch_size
    common: dict[str, Any] = {"device": hardware.device, "seed": settings.seed, **settings.loading}
    train = task.data.load(data, "train", net, batch_size=size, shuffle=True, **common)
    validation = task.data.load(data, "validation", net, batch_size=4 * size, **common)
    return Job(task, settings, hardware, build, (train, validation))


def composed(model: str, *overrides: str) -> Train:
    """The checked config of a training stage."""
    task = find(model=model)
    stage, schema = task.about.stage, task.settings.Train
    found: list[Train] = []
    before = sys.argv
    sys.argv = [stage, *overrides]
    try:
        config.main(stage, schema, lambda settings, _: found.append(settings))
    finally:
        sys.argv = before
    return found[0]
