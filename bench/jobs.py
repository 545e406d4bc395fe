"""The three trainings inside this process, by our loop and by a bare one."""

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
from torch.nn import functional as F

from bench.measure import prepare
from pipeline import config, models, tracking
from pipeline.batches import Batch, Batches
from pipeline.checkpoint import Checkpoints
from pipeline.hardware import Hardware, card, configure
from pipeline.prepared import read_card
from pipeline.settings import FinetuneTransformer, Train, TrainCNN, TrainRNN
from pipeline.tasks.image_classification import data as image
from pipeline.tasks.speech_classification import data as audio
from pipeline.tasks.text_classification import data as text
from pipeline.training import evaluate, fit, schedule

SCHEMAS: dict[str, tuple[str, type[Train]]] = {
    "cnn": ("train_cnn", TrainCNN),
    "transformer": ("finetune_transformer", FinetuneTransformer),
    "rnn": ("train_rnn", TrainRNN),
}
MODALITY = {"cnn": "image", "transformer": "text", "rnn": "audio"}


@dataclass(frozen=True)
class Job:
    """A training as a stage would run it.

    Attributes:
        settings: of the stage.
        hardware: configured.
        build: a model on the device with the same initial weights at each call.
        batches: training and validation.
    """

    settings: Train
    hardware: Hardware
    build: Callable[[], nn.Module]
    batches: tuple[Batches, Batches]

    def ours(self, steps: int, tracked: bool, model: nn.Module | None = None) -> float:
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
            fit(
                model or self.build(), *self.batches, settings=settings.training,
                optimizer=settings.optimizer, hardware=self.hardware, seed=settings.seed,
                checkpoints=Checkpoints(Path(folder)), log=run.metrics, max_steps=steps,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            run.end("FINISHED")
        return seconds

    def bare(self, steps: int) -> float:
        """Seconds of the same arithmetic as a tutorial would write it."""
        started = time.perf_counter()
        settings, model = self.settings.training, self.build()
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
        step, epoch = 0, 0
        while step < steps:
            for batch in self.batches[0].epoch(epoch):
                rate = schedule(step, steps, settings.schedule, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = self.settings.optimizer.lr * rate
                self.forward(model, batch).backward()
                if settings.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step == steps:
                    break
            epoch += 1
            evaluate(model, self.batches[1], self.hardware)
            model.train()
        return time.perf_counter() - started

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The training loss of a batch."""
        with torch.autocast(
            self.hardware.device.type, torch.bfloat16, enabled=self.hardware.precision == "bf16"
        ):
            output = model(**batch.inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        smoothing = self.settings.training.label_smoothing
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing)


def job(model: str, folder: Path, *overrides: str, data: Path | None = None) -> Job:
    """A training by the config as it stands, changed by Hydra overrides."""
    modality = MODALITY[model]
    if data is None:
        data = folder / "data" / modality
        if not data.exists():
            prepare(folder, modality)
    settings = composed(model, f"data={data}", *overrides)
    hardware = configure(settings)
    about = read_card(data)
    common: dict[str, Any] = {
        "batch_size": settings.training.batch_size, "device": hardware.device,
        "seed": settings.seed,
    }  # fmt: skip
    description: models.ImageModel | models.TextModel | models.SpeechModel
    if isinstance(settings, TrainCNN):
        batches = image.load_training(
            data, augment=settings.augment, in_memory_limit=settings.in_memory_limit, **common
        )
        mean, std = image.pixel_statistics(batches[0])
        description = models.ImageModel(
            settings=settings.cnn, classes=about.classes, channels=about.channels,
            height=about.height, width=about.width, mean=mean, std=std,
        )  # fmt: skip
    elif isinstance(settings, FinetuneTransformer):
        description = models.TextModel(settings=settings.transformer, classes=about.classes)
        _, tokenizer = models.build(description)
        length = settings.transformer.max_length
        batches = text.load_training(data, tokenizer, max_length=length, **common)
    elif isinstance(settings, TrainRNN):
        batches = audio.load_training(data, **common)
        description = models.SpeechModel(
            settings=settings.rnn, classes=about.classes, sample_rate=about.sample_rate
        )

    def build() -> nn.Module:
        torch.manual_seed(settings.seed)
        return models.build(description)[0].to(hardware.device)

    return Job(settings, hardware, build, batches)


def composed(model: str, *overrides: str) -> Train:
    """The checked config of a training stage."""
    stage, schema = SCHEMAS[model]
    found: list[Train] = []
    before = sys.argv
    sys.argv = [stage, *overrides]
    try:
        config.main(stage, schema, lambda settings, _: found.append(settings))
    finally:
        sys.argv = before
    return found[0]
