"""One training loop for every task.

The step count decides everything: the learning rate, the dropout masks, the order of the data and
the augmentation are functions of (seed, step), so a run resumed at any step computes the very bits
that an uninterrupted one computes.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pipeline import interrupts
from pipeline.errors import PipelineError
from pipeline.settings import Optimizer, Training
from pipeline.task import ModelModule
from pipeline.training import modules
from pipeline.training.adamw import AdamW, schedule
from pipeline.training.batches import Batch, Batches, mix
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import Hardware, explain_failure, peak_memory
from pipeline.training.muon import Muon

Log = Callable[[dict[str, float], int], None]
"""Takes metrics by name and the optimizer step they belong to."""


@dataclass
class Progress:
    """Where a training stands. Everything but the tensors of model and optimizer.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        batch: batches done in the current epoch.
        best: best value of the monitored score; of one that should fall, its negative.
        best_step: the step it was measured at.
        stale: epochs since then.
        losses: training losses of the steps since the last logged point.
        epoch_loss: sum of the training losses of the current epoch's earlier points.
        curve: a row per epoch: epoch, step, lr, train_loss, and the scores as `validation_<name>`.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    best_step: int = 0
    stale: int = 0
    losses: list[float] = field(default_factory=list)
    epoch_loss: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Loop:
    """One training: `fit` trains the model in place and leaves it with its best weights.

    The task's `settle`, if it has one, then sets what the validation split decides.

    A training whose state is in `checkpoints` continues there. The state is saved after an epoch,
    unless saves are dear; after the last one; every `settings.save_minutes`; and when the process
    is asked to end. Of several processes the first saves, by its own clock, and without the others.

    Attributes:
        model: what the task's `loss` and `score` call; moves to the hardware's device.
        train: shuffled batches.
        validation: batches that decide which epoch is the best.
        task: has `loss` and `score`, and `settle` if it likes.
        falling: the scores that are better the lower.
        settings: the loop's settings.
        optimizer: the optimizer's settings.
        hardware: device and precision.
        seed: together with the step decides every random draw.
        checkpoints: the run's saved states.
        log: called with metrics and the step: `train/loss` and `train/lr` every
            `settings.log_every` steps; validation metrics, seconds and throughput every epoch.
        max_steps: caps the optimizer steps; the schedule then ends there.

    Raises:
        PipelineError: the split has fewer batches than `settings.accumulate`.
    """

    model: nn.Module
    train: Batches
    validation: Batches
    task: ModelModule
    settings: Training
    optimizer: Optimizer
    hardware: Hardware
    seed: int
    checkpoints: Checkpoints
    log: Log
    max_steps: int | None = None
    falling: frozenset[str] = frozenset({"loss"})

    def __post_init__(self) -> None:
        settings, hardware = self.settings, self.hardware
        self.steps_per_epoch = len(self.train) // settings.accumulate
        if self.steps_per_epoch == 0:
            raise PipelineError(
                f"training.accumulate={settings.accumulate} needs as many batches and the training "
                f"split has {len(self.train)}; lower training.accumulate or training.batch_size"
            )
        self.total = min(settings.epochs * self.steps_per_epoch, self.max_steps or sys.maxsize)

        self.model.to(hardware.device)
        self.rank, self.processes = hardware.shard
        alone, on_cpu = self.processes == 1, hardware.device.type == "cpu"
        modules.sparse_gradients(self.model, on_cpu and alone and not settings.compile)
        self.wrapped: nn.Module = self.model if alone else DistributedDataParallel(self.model)
        half = hardware.precision == "fp16"
        # AdamW has what it calls, and is none of torch's optimizers
        self.scaler: Any = torch.amp.GradScaler(hardware.device.type) if half else None
        if settings.compile:
            # Unlike what `hardware` calls, this tells the compiler too.
            torch.use_deterministic_algorithms(hardware.deterministic)
            self.wrapped = cast(nn.Module, torch.compile(self.wrapped, mode=settings.compile))
        self.records = settings.compile in ("reduce-overhead", "max-autotune")
        """Whether a batch's outputs and gradients lie where the next one's CUDA graph writes."""
        # Tries kernels on each new shape, which pays where shapes repeat.
        torch.backends.cudnn.benchmark = not hardware.deterministic and self.train.lengths is None
        self.forward = modules.in_precision(self.wrapped, hardware)
        how = self.optimizer.weight_decay, self.optimizer.betas
        muon = self.optimizer.name == "muon"
        self.adamw = Muon(self.model, *how) if muon else AdamW(self.model.parameters(), *how)
        self.best_weights = modules.copied(self.model)
        self.progress = Progress()
        self.pending: list[Tensor] = []
        """Losses on the device, of the steps since the last point; reading one waits for it."""
        shown = hardware.leads and sys.stderr.isatty()
        self.bar = tqdm(total=self.total, unit="step", disable=not shown)

    def fit(self) -> Progress:
        """Train.

        Raises:
            PipelineError: a loss is not finite, the device is out of memory, or
                `settings.monitor` is no score.
            Interrupted: SIGTERM or Ctrl-C; the state is saved.
        """
        self.restore()
        progress = self.progress
        with self.bar, interrupts.deferred():
            while self.goes_on():
                started, first_step = time.perf_counter(), progress.step
                try:
                    self.run_epoch()
                    seconds = time.perf_counter() - started
                    scores = self.score()
                except (RuntimeError, MemoryError) as error:
                    if explained := explain_failure(error, self.train.batch_size, self.hardware):
                        raise explained from error
                    raise
                self.end_epoch(scores, seconds, first_step)
                if not (self.goes_on() and self.checkpoints.are_dear()):
                    self.save()
        modules.load(self.model, self.best_weights)
        if hasattr(self.task, "settle"):
            self.model.eval()
            with torch.inference_mode():
                forward = modules.in_precision(self.model, self.hardware)
                self.task.settle(self.model, forward, self.validation)
        return progress

    def goes_on(self) -> bool:
        """Whether a step is still to do, or the end of an epoch after whose last it was stopped."""
        progress, patience = self.progress, self.settings.patience or math.inf
        return (progress.step < self.total or progress.batch > 0) and progress.stale < patience

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        settings = self.settings
        return self.optimizer.lr * schedule(step, self.total, settings.schedule, settings.warmup)

    def run_epoch(self) -> None:
        """Do the optimizer steps that the current epoch still has."""
        progress, settings = self.progress, self.settings
        self.wrapped.train()
        batches = self.train.epoch(progress.epoch, progress.batch)
        end = min(self.total, (progress.epoch + 1) * self.steps_per_epoch)
        while progress.step < end:
            self.pending.append(self.step(batches))
            progress.step += 1
            progress.batch += settings.accumulate
            self.bar.update()
            if logs := progress.step % settings.log_every == 0 or progress.step == end:
                self.log_losses()
            if self.processes > 1 and not logs:
                continue  # what a state has of their losses they exchange where all of them log
            signal = self.signal()
            if signal or self.checkpoints.age() > settings.save_minutes * 60:
                self.read_losses()
                self.save()
            if signal:
                if self.processes > 1:  # a launcher ends all others once the first has ended
                    torch.distributed.barrier()
                raise interrupts.Interrupted(
                    signal,
                    f"stopped at step {progress.step} of {self.total}; the state is saved in "
                    f"{self.checkpoints.folder}: the same command continues there",
                )

    def signal(self) -> int:
        """The signal that asks this training, in whichever of its processes, to end; or 0."""
        asked = interrupts.pending() or 0
        if self.processes == 1:
            return asked
        shared = torch.tensor(asked, device=self.hardware.device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return int(shared)

    def step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimizer step over `accumulate` batches; returns its mean loss, on the device."""
        step = self.progress.step
        self.adamw.lr = self.learning_rate(step)
        parts = [next(batches) for _ in range(self.settings.accumulate)]
        total = sum(batch.whole for batch in parts)
        losses = []
        for micro, batch in enumerate(parts):
            # Dropout draws from the global generator; seeded per batch, it needs no saved state.
            self.hardware.reseed(mix(self.seed, step, micro, self.rank))
            # The mean over processes of what this gives is the mean over the step's examples.
            share = batch.weight * self.processes / total
            # Data-parallel processes exchange gradients once per step, not once per batch.
            waits = micro < len(parts) - 1 and self.processes > 1
            with cast(Any, self.wrapped).no_sync() if waits else nullcontext():
                loss = self.task.loss(self.forward, batch, self.settings)
                loss = loss if share == 1 else loss * share
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            losses.append(loss.detach().clone() if self.records else loss.detach())
            if self.records and micro < len(parts) - 1:
                modules.keep_gradients(self.model)
        if self.scaler:
            self.scaler.step(self.adamw, self.settings.clip_norm)
            self.scaler.update()
        else:
            self.adamw.step(self.settings.clip_norm)
        self.adamw.zero_grad()
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def log_losses(self) -> None:
        """Log the mean loss since the last point."""
        progress = self.progress
        self.read_losses()
        first = progress.step - len(progress.losses) + 1
        for step, value in enumerate(progress.losses, first):
            if not math.isfinite(value):
                raise PipelineError(
                    f"the training loss is {value} at epoch {progress.epoch + 1}, step {step} "
                    f"(learning rate {self.learning_rate(step - 1):.3g}); lower optimizer.lr, or "
                    "set training.clip_norm or common.precision=fp32"
                )
        mean = sum(progress.losses) / len(progress.losses)
        rate = self.learning_rate(progress.step - 1)
        self.log({"train/loss": mean, "train/lr": rate}, progress.step)
        progress.epoch_loss += sum(progress.losses)
        progress.losses = []

    def read_losses(self) -> None:
        """Fetch the losses of the last steps; the one place that waits for the device."""
        if self.pending:
            losses = torch.stack(self.pending)
            if self.processes > 1:
                torch.distributed.all_reduce(losses)
                losses /= self.processes
            self.progress.losses += losses.tolist()
            self.pending.clear()

    def score(self) -> dict[str, float]:
        """The task's scores on the validation split; every process goes by the first one's."""
        scores = modules.score(self.model, self.validation, self.task, self.settings, self.hardware)
        if self.processes > 1:
            values = list(scores.values())
            shared = torch.tensor(values, dtype=torch.float64, device=self.hardware.device)
            torch.distributed.broadcast(shared, src=0)
            scores = dict(zip(scores, shared.tolist(), strict=True))
        return scores

    def end_epoch(self, scores: dict[str, float], seconds: float, first_step: int) -> None:
        """Count the epoch, keep its weights if they are the best, log and print."""
        progress, settings = self.progress, self.settings
        steps = progress.step - progress.epoch * self.steps_per_epoch
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "lr": self.learning_rate(progress.step - 1),
            "train_loss": progress.epoch_loss / steps,
            **{f"validation_{name}": value for name, value in scores.items()},
        }
        progress.curve.append(row)
        progress.epoch, progress.batch, progress.epoch_loss = progress.epoch + 1, 0, 0.0
        if settings.monitor not in scores:
            raise PipelineError(
                f"training.monitor is {settings.monitor!r}; the scores are {', '.join(scores)}"
            )
        value = scores[settings.monitor] * (-1 if settings.monitor in self.falling else 1)
        if value > progress.best:
            progress.best, progress.best_step, progress.stale = value, progress.step, 0
            self.best_weights = modules.copied(self.model)
        else:
            progress.stale += 1
        batches = (progress.step - first_step) * settings.accumulate
        examples = batches * self.train.batch_size * self.processes
        self.log(
            {
                **{f"validation/{name}": value for name, value in scores.items()},
                "time/epoch_seconds": seconds,
                "time/examples_per_second": examples / seconds,
                "memory/peak_bytes": peak_memory(self.hardware.device),
            },
            progress.step,
        )
        if self.hardware.leads:
            self.bar.write(
                f"epoch {progress.epoch}/{settings.epochs}  step {progress.step}/{self.total}  "
                f"train loss {row['train_loss']:.4f}  "
                + "".join(f"validation {name} {value:.4f}  " for name, value in scores.items())
                + f"{seconds:.1f} s",
                file=sys.stdout,
            )
            sys.stdout.flush()

    def save(self) -> None:
        """Save the training state; all losses are read."""
        if not self.hardware.leads:
            return
        weights, scaler = modules.changing(self.model), self.scaler
        best_is_current = self.progress.best_step == self.progress.step
        state = {
            "progress": asdict(self.progress),
            "model": weights,
            "optimizer": self.adamw.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            # torch.save stores tensors that occur twice once
            "best": weights if best_is_current else self.best_weights,
        }
        self.checkpoints.save(self.progress.step, state)

    def restore(self) -> None:
        """Continue from the saved state, if there is one."""
        state = self.checkpoints.load()
        if state is None:
            return
        self.progress = Progress(**state["progress"])
        modules.load(self.model, state["model"])
        self.adamw.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.best_weights = state["best"]
        self.bar.update(self.progress.step)
        print(f"Resuming after step {self.progress.step} of {self.total}")
