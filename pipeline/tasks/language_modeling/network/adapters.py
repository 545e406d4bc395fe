"""Adapters of low rank (Hu et al. 2022) beside the linear maps of a network that is there.

The weights of the network stay; the adapters have the names that peft gives them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Frozen(nn.Module):
    """Weights that stay; in a lower precision they are rounded once, not at every step."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._rounded: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` [..., in] times the weights, [..., out]."""
        return F.linear(inputs, self.values(inputs.device.type), self.bias)

    def values(self, device: str) -> Tensor:
        """In the precision of the moment."""
        if not torch.is_autocast_enabled(device):
            return self.weight
        kind, held = torch.get_autocast_dtype(device), self._rounded
        if held is None or held.dtype != kind or held.device != self.weight.device:
            with torch.inference_mode(False):  # a training may want it too
                held = self._rounded = self.weight.detach().to(kind)
        return held


class Norm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019) with frozen weights, in one pass."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.frozen = Frozen(norm.weight.detach())
        self.epsilon: float = norm.variance_epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., width], in the precision of the inputs."""
        weight = self.frozen.values(inputs.device.type)
        return F.rms_norm(inputs, weight.shape, weight, self.epsilon)


class LowRank(nn.Module):
    """A frozen linear map, and a trained one of low rank that is added to it."""

    def __init__(self, linear: Any, rank: int, alpha: float) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        self.turned = not isinstance(linear, nn.Linear)  # GPT-2 has [in, out]
        weight = weight.T.contiguous() if self.turned else weight
        high, wide = weight.shape
        self.frozen = Frozen(weight, None if bias is None else bias.detach())
        self.lora_A = nn.Linear(wide, rank, bias=False)
        self.lora_B = nn.Linear(rank, high, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.share = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        few = self.lora_A(inputs) * self.share
        added: Tensor = self.frozen(inputs)
        # the sum comes with the product: to add it afterwards costs a pass over the output
        return torch.addmm(added.flatten(0, -2), few.flatten(0, -2), self.lora_B.weight.T).view_as(
            added
        )

    def merged(self) -> Tensor:
        """The weights of the one linear map that does the same."""
        weight = self.frozen.weight + self.share * self.lora_B.weight @ self.lora_A.weight
        return (weight.T if self.turned else weight).detach().contiguous()


def adapt(network: Any, rank: int, alpha: float) -> None:
    """Freeze a network of transformers; an adapter beside each linear map but the head."""
    from transformers.pytorch_utils import Conv1D

    network.requires_grad_(False)
    inner = network.base_model
    for name, module in list(inner.named_modules()):
        if isinstance(module, nn.Linear | Conv1D):
            above, _, own = name.rpartition(".")
            setattr(inner.get_submodule(above), own, LowRank(module, rank, alpha))


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The state of the network without adapters that does the same, by its own names."""
    state = {name: one for name, one in network.state_dict().items() if ".lora_" not in name}
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            state[f"{name}.frozen.weight"] = module.merged()
    return {name.replace(".frozen.", "."): one for name, one in state.items()}
