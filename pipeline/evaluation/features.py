"""The representations inside a network: where they are, and what they are for given inputs.

Any transformers encoder, any convolutional network (what a stage is, is read off one forward pass),
and this project's recurrent network.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.rnn import SpeechClassifier, standardise

Inputs = dict[str, Tensor]
GRID = 4
"""Feature maps are pooled to this many cells a side before a probe sees them."""


class Point(NamedTuple):
    """A place in a network.

    Attributes:
        name: for people, such as `32×28×28` or `layer 3`.
        module: the module whose hook sees it.
        read: maps (module's arguments, its output, the model's inputs) to features [batch, d].
    """

    name: str
    module: nn.Module
    read: Callable[[Sequence[Any], Any, Inputs], Tensor]


def points(model: nn.Module, inputs: Inputs) -> list[Point]:
    """The stages of a network from its input to its head, in the order of computing.

    Transformers: the embeddings and each layer, averaged over the tokens. Recurrent: log-mel
    features, the convolution and each layer, averaged over time. Convolutional: the last feature
    maps of each size, and what enters the head.

    Raises:
        ValueError: the network is of none of these kinds.
    """
    if "input_ids" in inputs:
        return _transformer_points(model)
    if isinstance(model, SpeechClassifier):
        return _recurrent_points(model)
    if "images" in inputs:
        return [Point(stage.name, stage.module, _pool) for stage in map_stages(model, inputs)] + [
            Point("head's input", last_linear(model), lambda args, _out, _in: args[0].flatten(1))
        ]
    raise ValueError(f"{type(model).__name__} has no stages that are known here")


class Maps(NamedTuple):
    """A module that ends a stage of a convolutional network, and the shape of its maps."""

    name: str
    module: nn.Module
    shape: tuple[int, int, int]


def map_stages(model: nn.Module, inputs: Inputs) -> list[Maps]:
    """The last module of each shape of feature maps (channels, height, width), in order."""
    size = tuple(inputs["images"].shape[1:])
    seen: dict[tuple[int, ...], nn.Module] = {}

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            shape = tuple(output.shape[1:])
            if shape != size and shape[1] * shape[2] > 1:
                seen.pop(shape, None)
                seen[shape] = module

    with hooks((module, note) for module in model.modules()):
        forward(model, inputs)
    return [
        Maps("×".join(map(str, shape)), module, (shape[0], shape[1], shape[2]))
        for shape, module in seen.items()
    ]


def capture(
    model: nn.Module,
    batches: Iterable[Inputs],
    where: Sequence[Point],
    autocast: AbstractContextManager[Any] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Features float32 [n, d] at each point, from one pass over the inputs, plus their `logits`."""
    found: dict[str, list[Tensor]] = {point.name: [] for point in where}
    found["logits"] = []
    current: Inputs = {}

    def reader(point: Point) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, args: Any, output: Any) -> None:
            found[point.name].append(point.read(args, output, current).detach().float())

        return read

    with hooks((point.module, reader(point)) for point in where), autocast or nullcontext():
        for inputs in batches:
            current.clear()
            current.update(inputs)
            found["logits"].append(logits_of(forward(model, inputs)).float())
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


def feature_maps(
    model: nn.Module, inputs: Inputs, stages: Sequence[Maps]
) -> list[NDArray[np.float32]]:
    """Feature maps float32 [n, channels, height, width] at each stage, in one pass."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any, Any], None]:
        # A copy: a later module may write into its input.
        return lambda _module, _args, output: found.update({number: output.detach().clone()})

    with hooks((stage.module, keep(number)) for number, stage in enumerate(stages)):
        forward(model, inputs)
    return [found[number].float().cpu().numpy() for number in range(len(stages))]


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model with fresh random weights.

    Buffers that describe the data (mean, deviation, mel filters) are kept.
    """
    device = next(model.parameters()).device
    # Drawn on the CPU, so that the control is the same one on every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "config") and hasattr(model, "init_weights"):
            fresh: nn.Module = type(model)(model.config)
        else:
            fresh = copy.deepcopy(model).cpu()
            for module in fresh.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    return fresh.to(device).train(model.training)


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer in order of registration: a classifier's head."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def depths(names: Sequence[str]) -> dict[str, str]:
    """Which of the points stand for early, middle and late: {depth: name of the point}."""
    middle = names[(len(names) - 1) // 2]
    chosen = {"early": names[0], "middle": middle, "late": names[-1]}
    if middle in (names[0], names[-1]):
        del chosen["middle"]
    if names[0] == names[-1]:
        del chosen["early"]
    return chosen


@contextmanager
def hooks(wanted: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks that are taken off again whatever happens."""
    handles = [module.register_forward_hook(hook) for module, hook in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def forward(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns, in evaluation mode, without gradients; its mode is put back."""
    training = model.training
    model.eval()
    try:
        return model(**inputs)
    finally:
        model.train(training)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or transformers' `ModelOutput`."""
    return output if isinstance(output, Tensor) else output.logits


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers encoder: its longest list of modules."""
    count = model.config.num_hidden_layers  # type: ignore[union-attr]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of {count} layers")
    return list(lists[0])


def _transformer_points(model: nn.Module) -> list[Point]:
    def mean(states: Tensor, inputs: Inputs) -> Tensor:
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    def after(_args: Sequence[Any], output: Any, inputs: Inputs) -> Tensor:
        return mean(output if isinstance(output, Tensor) else output[0], inputs)

    layers = encoder_layers(model)
    return [
        Point("embeddings", layers[0], lambda args, _output, inputs: mean(args[0], inputs)),
        *(Point(f"layer {number}", layer, after) for number, layer in enumerate(layers, 1)),
    ]


def _recurrent_points(model: SpeechClassifier) -> list[Point]:
    """Means over the steps that are no padding."""

    def mean(states: Tensor, count: Tensor) -> Tensor:
        inside = torch.arange(states.shape[1], device=states.device) < count[:, None]
        return (states * inside[..., None]).sum(dim=1) / count[:, None]

    def steps(inputs: Inputs) -> Tensor:
        frames = 1 + inputs["lengths"] // model.features.hop
        return (frames - 1) // model.stride + 1

    def spectrum(_args: Sequence[Any], output: Any, _inputs: Inputs) -> Tensor:
        features, frames = output
        return mean(standardise(features, frames), frames)

    def convolved(_args: Sequence[Any], output: Tensor, inputs: Inputs) -> Tensor:
        return mean(functional.relu(output).transpose(1, 2), steps(inputs))

    def after(_args: Sequence[Any], output: Tensor, inputs: Inputs) -> Tensor:
        return mean(output, steps(inputs))

    return [
        Point("log-mel", model.features, spectrum),
        Point("convolution", model.front, convolved),
        *(Point(f"layer {number}", layer, after) for number, layer in enumerate(model.layers, 1)),
    ]


def _pool(_args: Sequence[Any], output: Tensor, _inputs: Inputs) -> Tensor:
    size = (min(GRID, output.shape[2]), min(GRID, output.shape[3]))
    return functional.adaptive_avg_pool2d(output, size).flatten(1)
