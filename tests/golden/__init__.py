"""Golden runs: the loss of every step of a small training of each model, as it once was.

A change of these numbers is a change of what the project computes. They are written by
`python -m tests.golden --write` and by nothing else.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.machine import NUMERICS
from pipeline.prepared import read_card
from pipeline.settings import Optimizer
from pipeline.task import Task, find, tasks
from pipeline.training import net as nets
from pipeline.training.batches import Batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import card, configure
from pipeline.training.loop import Loop
from tests.conftest import stage_settings
from tests.models.presets import preset

FOLDER = Path(__file__).parent
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Relative difference of a loss that another CPU or another version of a library may make."""

STEPS = 10
BATCH = 16
RATES = {
    "cnn": 0.002, "transformer": 5e-5, "rnn": 0.004, "detector": 0.004, "language_model": 0.004,
}  # fmt: skip
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("convnet", {}), "transformer": ("minilm", {"max_length": 32}), "rnn": ("gru", {}),
    "detector": ("ttfnet", {"size": 64}),
    "language_model": ("scratch", {"layers": 2, "width": 64, "block": 64, "context": 64}),
}  # fmt: skip
OPTIMIZERS = {"detector": "muon"}
SMOOTHED = {"label_smoothing": 0.05}
OWN: dict[str, dict[str, Any]] = {"detector": {"box_weight": 5.0}, "language_model": {}}
"""What else a training's settings have."""
AUGMENT = {"degrees": 10.0, "translate": 0.08, "scale": 0.1, "flip": False}
MODELS = tuple(task.about.model for task in tasks() if task.about.model in PRESETS)


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
    hardware = configure(stage_settings(precision=precision))
    try:
        losses: list[float] = []
        task = find(model=model)
        net, batches = _build(task, data / task.about.data)
        with tempfile.TemporaryDirectory() as states:
            Loop(
                net.module,
                *batches,
                task=task.model,
                settings=task.settings.Train.model_fields["training"].annotation(
                    epochs=2, batch_size=BATCH, accumulate=1, schedule="cosine", warmup=0.2,
                    clip_norm=1.0, patience=None, monitor=task.about.headline,
                    log_every=1, save_minutes=60, compile=None, **OWN.get(model, SMOOTHED),
                ),
                optimizer=Optimizer(
                    name=OPTIMIZERS.get(model, "adamw"), lr=RATES[model], weight_decay=0.01,
                    betas=[0.9, 0.999],
                ),
                hardware=hardware,
                seed=0,
                checkpoints=Checkpoints(Path(states)),
                log=lambda metrics, _: losses.extend(
                    value for name, value in metrics.items() if name == "train/loss"
                ),
                max_steps=STEPS,
            ).fit()  # fmt: skip
        facts = card(hardware)
    finally:
        torch.set_num_threads(before)
        torch.set_deterministic_debug_mode("default")
    depends = {name: facts[name] for name in NUMERICS}
    return {"losses": losses, "numerics": facts["numerics"], "card": depends}


def _build(task: Task, data: Path) -> tuple[nets.Net, list[Batches]]:
    name, changes = PRESETS[task.about.model]
    net = nets.build(task, preset(task.about.model, name, **changes), read_card(data).facts)
    common: Any = {"batch_size": BATCH, "device": torch.device("cpu"), "seed": 0}
    if task.about.model == "cnn":
        common["augment"] = task.settings.Augment(**AUGMENT)  # type: ignore[attr-defined]
    train = task.data.load(data, "train", net, shuffle=True, **common)
    return net, [train, task.data.load(data, "validation", net, **common)]
