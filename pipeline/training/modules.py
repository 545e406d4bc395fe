"""What the loop does with any torch module: its precision, scores, gradients and weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pipeline.checks import finite
from pipeline.settings import Training
from pipeline.task import Forward, ModelModule
from pipeline.training.batches import Batches
from pipeline.training.hardware import Hardware

SPARSE_FROM = 10_000
"""Rows from which on an embedding's gradient is sparse: a batch has a few hundred of them."""

Weights = dict[str, Tensor]


def in_precision(model: nn.Module, hardware: Hardware) -> Forward:
    """The model's forward pass in the hardware's precision; half precision comes out as float32."""

    def forward(*args: Any, **inputs: Any) -> Any:
        with hardware.autocast():
            output = model(*args, **inputs)
        return tree_map(_in_float32, output)

    return forward


def _in_float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def score(
    model: nn.Module,
    batches: Batches,
    task: ModelModule,
    settings: Training,
    hardware: Hardware,
) -> dict[str, float]:
    """The task's scores of a model over a split, in evaluation mode.

    Raises:
        PipelineError: one of them is no finite number.
    """
    model.eval()
    with torch.inference_mode():
        scores = task.score(in_precision(model, hardware), batches, settings)
    said = f"{getattr(task, '__name__', 'the task')}.score"
    hint = ", so lower optimizer.lr or set training.clip_norm if the training diverges"
    return {name: float(value) for name, value in finite(scores, said, hint).items()}


def sparse_gradients(model: nn.Module, wanted: bool) -> None:
    """Let the gradients of large embeddings be sparse, or none.

    To fill, measure and scale the zeros of all other rows is a twentieth of MiniLM's step on a CPU.
    NCCL does not exchange sparse gradients, and torch's compiler does not know them.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq:
            module.sparse = wanted and module.num_embeddings >= SPARSE_FROM


def keep_gradients(model: nn.Module) -> None:
    """Copy the gradients; those that a CUDA graph gave are overwritten when it runs again."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def changing(model: nn.Module) -> Weights:
    """The state of a model but for frozen weights, which a training leaves as they are."""
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def copied(model: nn.Module) -> Weights:
    """A copy of what `changing` gives."""
    return {name: tensor.detach().clone() for name, tensor in changing(model).items()}


def load(model: nn.Module, weights: Weights) -> None:
    """Take over what `changing` or `copied` gave."""
    model.load_state_dict({**model.state_dict(), **weights})
