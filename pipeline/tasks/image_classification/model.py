"""Convolutional networks for small and large images."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.classification.model import answer as answer
from pipeline.classification.model import loss as loss
from pipeline.classification.model import score as score
from pipeline.errors import PipelineError
from pipeline.tasks.image_classification.settings import (
    ConvNet,
    Facts,
    LayersCNN,
    Model,
    SimpleCNN,
    TorchVision,
)


class ImageClassifier(nn.Module):
    """Raw pixels to logits: scaling and standardisation in front of a network.

    Args:
        net: maps float32 [batch, channels, height, width] to logits [batch, classes].
        mean: per channel, of the training images' pixels scaled to 0..1.
        std: likewise; 0, of a constant channel, is taken as one grey level.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        least = [max(deviation, 1 / 255) for deviation in std]
        for name, value in (("mean", mean), ("std", least)):
            pixels = 255 * torch.tensor(value, dtype=torch.float32)
            self.register_buffer(name, pixels.view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of `images`, uint8 (or float in 0..255) [batch, c, h, w]."""
        pixels = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return self.net((pixels - self.mean) / self.std)


def build(settings: Model, facts: Facts) -> tuple[ImageClassifier, None]:
    """A classifier with random weights, drawn from torch's global generator.

    Raises:
        PipelineError: the architecture is unknown or can't take images of this size.
    """
    net: nn.Module
    match settings:
        case SimpleCNN():
            _require(4, settings.name, facts)
            net = simple(facts)
        case LayersCNN():
            _require(5, settings.name, facts)
            net = layers(settings, facts)
        case ConvNet():
            _require(2 ** (len(settings.channels) - 1), settings.name, facts)
            net = convnet(settings, facts)
        case TorchVision():
            net = torchvision(settings.architecture, facts)
    # In this layout a training step of convnet takes a third less CPU time and one of simple half
    # (batch 64, fp32 and bf16); layers, whose head reads every position, takes a third more.
    classifier = ImageClassifier(net, facts.mean, facts.std)
    return classifier.to(memory_format=torch.channels_last), None


def _require(least: int, name: str, facts: Facts) -> None:
    if min(facts.height, facts.width) < least:
        raise PipelineError(
            f"cnn={name} needs images of at least {least}×{least}, these are "
            f"{facts.height}×{facts.width}; choose another cnn or larger images"
        )


def simple(facts: Facts) -> nn.Sequential:
    """One 3×3 convolution to 16 maps, ReLU, 2×2 max pooling and a linear head."""
    positions = ((facts.height - 2) // 2) * ((facts.width - 2) // 2)
    return nn.Sequential(
        nn.Conv2d(facts.channels, 16, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * positions, len(facts.classes)),
    )


def layers(config: LayersCNN, facts: Facts) -> nn.Sequential:
    """3×3 convolutions to 32 and 64 maps with ReLU, and a linear head over all positions."""
    return nn.Sequential(
        nn.Conv2d(facts.channels, 32, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(config.dropout),
        nn.Linear(64 * (facts.height - 4) * (facts.width - 4), len(facts.classes)),
    )


def convnet(config: ConvNet, facts: Facts) -> nn.Sequential:
    """Stages of 3×3 convolutions with batch norm and ReLU, then the maximum over all positions.

    On 3,500 digits the maximum was better than the mean over positions at the same cost: by 0.2
    points at this depth, by 1.5 with one convolution per stage.
    """
    blocks: list[nn.Module] = []
    last, channels = len(config.channels) - 1, int(facts.channels)
    for stage, maps in enumerate(config.channels):
        for number in range(config.depth):
            blocks.append(nn.Conv2d(channels, maps, kernel_size=3, padding=1, bias=False))
            if stage < last and number == config.depth - 1:
                # Before the norm, which then has a quarter of the positions to go over.
                blocks.append(nn.MaxPool2d(2))
            blocks += [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
            channels = maps
    head = nn.Dropout(config.dropout), nn.Linear(channels, len(facts.classes))
    return nn.Sequential(*blocks, GlobalMaxPool(), *head)


class GlobalMaxPool(nn.Module):
    """[batch, maps, h, w] to [batch, maps].

    `nn.AdaptiveMaxPool2d` has no deterministic backward pass on CUDA.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """The largest value of each map."""
        return maps.amax(dim=(2, 3))


def torchvision(architecture: str, facts: Facts) -> nn.Module:
    """A torchvision classifier by name, its first convolution and its head sized for the data.

    Raises:
        PipelineError: no classifier has this name, or it can't take images of this size.
    """
    from torchvision import models  # 2.6 s

    channels, height, width = facts.channels, facts.height, facts.width
    names = models.list_models(module=models)
    if architecture not in names:
        near = difflib.get_close_matches(architecture, names, n=3, cutoff=0.4)
        raise PipelineError(
            f"cnn.architecture: torchvision has no classifier {architecture!r}; "
            f"the nearest names are {', '.join(near or ['resnet18', 'mobilenet_v3_small'])}"
        )
    options: dict[str, object] = {}
    if architecture.startswith(("googlenet", "inception")):
        # Their auxiliary heads answer with a tuple while training.
        options = {"aux_logits": False, "init_weights": True}
    elif architecture.startswith("vit"):
        options = {"image_size": height}
    elif architecture.startswith("maxvit"):
        options = {"input_size": (height, width)}
    try:
        classes = len(facts.classes)
        net = models.get_model(architecture, weights=None, num_classes=classes, **options)
        _adapt_channels(net, channels)
        with torch.no_grad():
            net.eval()(torch.zeros(1, channels, height, width))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise PipelineError(
            f"cnn.architecture: {architecture} can't take images of {height}×{width} "
            f"({' '.join(str(error).split()) or type(error).__name__}); choose convnet or resnet18"
        ) from error
    return net.train()


def _adapt_channels(net: nn.Module, channels: int) -> None:
    """Put a convolution for `channels` in place of the first one, which takes RGB."""
    name, first = next(
        (name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)
    )
    if first.in_channels == channels:
        return
    parent, _, leaf = name.rpartition(".")
    setattr(
        net.get_submodule(parent),
        leaf,
        nn.Conv2d(
            channels,
            first.out_channels,
            kernel_size=first.kernel_size,  # type: ignore[arg-type]
            stride=first.stride,  # type: ignore[arg-type]
            padding=first.padding,  # type: ignore[arg-type]
            bias=first.bias is not None,
        ),
    )
