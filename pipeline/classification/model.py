"""What the networks of all classifiers share: loss, scores, answers."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.classification.settings import ClassifierTraining
from pipeline.task import Forward
from pipeline.training.batches import Batch, Batches
from pipeline.training.net import Net, logits_of


def loss(module: Forward, batch: Batch, settings: ClassifierTraining) -> Tensor:
    """Mean cross-entropy with label smoothing; targets are labels, int64 [batch]."""
    return F.cross_entropy(
        logits_of(module(**batch.inputs)),
        batch.targets,
        label_smoothing=settings.label_smoothing,
    )


def score(module: Forward, batches: Batches, _settings: ClassifierTraining) -> dict[str, float]:
    """Mean cross-entropy, `loss`, and `accuracy` over a split, read from the device once."""
    losses = torch.zeros((), device=batches.device)
    correct = torch.zeros((), device=batches.device)
    for batch in batches.epoch(0):
        logits = logits_of(module(**batch.inputs))
        losses += F.cross_entropy(logits, batch.targets, reduction="sum")
        correct += (logits.argmax(1) == batch.targets).sum()
    total, hits = torch.stack([losses, correct]).tolist()
    return {"loss": total / batches.examples, "accuracy": hits / batches.examples}


def answer(output: Any, net: Net) -> list[dict[str, Any]]:
    """Of each example `{"label": "7", "probabilities": {"0": 0.001, …}}`."""
    answers = []
    for row in logits_of(output).float().softmax(dim=1).tolist():
        chances = dict(zip(net.facts.classes, row, strict=True))
        answers.append({"label": max(chances, key=lambda k: chances[k]), "probabilities": chances})
    return answers
