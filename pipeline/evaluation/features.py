"""The representations inside a network: where they are, and what they are for given inputs."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.training.net import logits_of

Inputs = dict[str, Tensor]


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
