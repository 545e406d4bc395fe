"""Golden runs: the loss of every step of a small training of each model, as it once was.

A change of these numbers is a change of what the project computes. They are written by
`python -m tests.golden --write` and by nothing else.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline import models
from pipeline.checkpoint import Checkpoints
from pipeline.hardware import card, configure
from pipeline.machine import NUMERICS
from pipeline.prepared import read_card
from pipeline.settings import Augment, Optimizer, Profile, Stage, Tracking, Training
from pipeline.tasks.image_classification import data as image
from pipeline.tasks.speech_classification import data as audio
from pipeline.tasks.text_classification import data as text
from pipeline.training import fit
from tests.models.presets import preset

FOLDER = Path(__file__).parent
MODELS = ("cnn", "transformer", "rnn")
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Relative difference of a loss that another CPU or another version of a library may make."""

STEPS = 10
BATCH = 16
RATES = {"cnn": 0.002, "transformer": 5e-5, "rnn": 0.004}


def recorded(model: str) -> dict[str, Any]:
    """What the golden file of a model says."""
    found: dict[str, Any] = json.loads((FOLDER / f"{model}.json").read_text())
    return found


def train(model: str, precision: str, data: Path) -> dict[str, Any]:
    """Train a model for a few steps; returns the loss of each and what its bits depend on.

    Args:
        model: one of `MODELS`.
        precision: fp32 or bf16.
        data: folder of the prepared data sets of `tests.workspace`.
    """
    before = torch.get_num_threads()
    hardware = configure(_settings(precision))
    try:
        losses: list[float] = []
        net, batches = _build(model, data)
        with tempfile.TemporaryDirectory() as states:
            fit(
                net,
                *batches,
                settings=Training(
                    epochs=2, batch_size=BATCH, accumulate=1, schedule="cosine", warmup=0.2,
                    clip_norm=1.0, label_smoothing=0.05, patience=None, monitor="accuracy",
                    log_every=1, save_minutes=60, compile=None,
                ),
                optimizer=Optimizer(lr=RATES[model], weight_decay=0.01, betas=[0.9, 0.999]),
                hardware=hardware,
                seed=0,
                checkpoints=Checkpoints(Path(states)),
                log=lambda metrics, _: losses.extend(
                    value for name, value in metrics.items() if name == "train/loss"
                ),
                max_steps=STEPS,
            )  # fmt: skip
        facts = card(hardware)
    finally:
        torch.set_num_threads(before)
        torch.set_deterministic_debug_mode("default")
    depends = {name: facts[name] for name in NUMERICS}
    return {"losses": losses, "numerics": facts["numerics"], "card": depends}


def _settings(precision: str) -> Stage:
    return Stage(
        seed=0, device="cpu", precision=precision, threads=1, deterministic=True,
        profile=Profile(max_examples=None, max_steps=None),
        tracking=Tracking(
            enabled=False, experiment="x", flush_seconds=1, system_seconds=1, promote=False
        ),
    )  # fmt: skip


def _build(model: str, data: Path) -> tuple[Any, Any]:
    common: Any = {"batch_size": BATCH, "device": torch.device("cpu"), "seed": 0}
    if model == "cnn":
        augment = Augment(degrees=10.0, translate=0.08, scale=0.1, flip=False)
        batches = image.load_training(data / "image", augment=augment, **common)
        about = read_card(data / "image")
        mean, std = image.pixel_statistics(batches[0])
        net, _ = models.build(
            models.ImageModel(
                settings=preset("cnn", "convnet"), classes=about.classes, channels=1, height=28,
                width=28, mean=mean, std=std,
            )
        )  # fmt: skip
    elif model == "rnn":
        batches = audio.load_training(data / "audio", **common)
        about = read_card(data / "audio")
        net, _ = models.build(
            models.SpeechModel(
                settings=preset("rnn", "gru"), classes=about.classes, sample_rate=8000
            )
        )
    else:
        classes = read_card(data / "text").classes
        net, tokenizer = models.build(
            models.TextModel(settings=preset("transformer", "minilm"), classes=classes)
        )
        batches = text.load_training(data / "text", tokenizer, max_length=32, **common)
    return net, batches
