"""Small networks with random weights."""

from typing import Any

import torch
from torch import Tensor, nn


class Pictures(nn.Module):
    """Two convolutions (3×3, pool 2, 3×3) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 64, 3),
        )

    def forward(self, images: Tensor) -> Any:
        return self.net(images.float() / 255)


def pictures() -> tuple[nn.Module, dict[str, Tensor]]:
    """`Pictures`, and a batch for it."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    return Pictures().eval(), {"images": images}


def bert() -> nn.Module:
    """A transformer of three layers for two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()
