"""Muon: matrices and filters move by the direction of their momentum, the rest by AdamW."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pipeline.errors import PipelineError
from pipeline.training.adamw import AdamW

LEAST = 16
"""Rows and columns that a matrix of Muon's has at least; in a smaller one there is little to even
out."""
MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""What a singular value goes through five times: all but the smallest are then near 1."""


class Muon(AdamW):
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

    The momentum of a matrix becomes the orthogonal matrix nearest to it, so that all its directions
    move as far. Filters are a matrix with a row for each. The step is as large as AdamW's usually
    is (Liu et al. 2025, "Muon is scalable for LLM training"): one learning rate serves both.

    AdamW moves what is no such matrix: vectors, embeddings, matrices with fewer than `LEAST` rows
    or columns, as adapters often have, and the last one, which gives the answers.

    Args:
        module: its parameters that require a gradient are trained.
        weight_decay, betas: as AdamW's; Muon decays alike.

    Raises:
        PipelineError: it has no matrix for Muon.
    """

    def __init__(self, module: nn.Module, weight_decay: float, betas: Sequence[float]) -> None:
        tables = (nn.Embedding, nn.EmbeddingBag)
        looked_up = {one.weight for one in module.modules() if isinstance(one, tables)}
        matrices = [p for p in module.parameters() if p.ndim > 1 and p not in looked_up]
        self.momenta = {
            p: torch.zeros_like(p)
            for p in matrices[:-1]
            if p.requires_grad and min(p.shape[0], p[0].numel()) >= LEAST
        }
        if not self.momenta:
            raise PipelineError(
                f"optimizer.name is 'muon', and no trained matrix but the last has {LEAST} rows "
                "and columns or more; take adamw"
            )
        super().__init__(module.parameters(), weight_decay, betas, self.momenta.keys())

    @override
    def _move(self, scale: Tensor | None) -> None:
        overflowed: Tensor | None = getattr(self, "found_inf", None)
        decay = self.param_groups[-1]["weight_decay"]
        for parameter, momentum in self.momenta.items():
            if (gradient := parameter.grad) is None:
                continue
            moved = parameter, momentum
            before = [one.clone() for one in moved] if overflowed is not None else []
            gradient = gradient if scale is None else gradient / scale
            momentum.lerp_(gradient, 1 - MOMENTUM)
            direction = orthogonal(gradient.lerp(momentum, MOMENTUM).flatten(1))
            reach = 0.2 * math.sqrt(max(direction.shape))
            parameter.mul_(1 - self.lr * decay)
            parameter.add_(direction.view_as(parameter), alpha=-self.lr * reach)
            if overflowed is not None:
                for new, old in zip(moved, before, strict=True):
                    new.copy_(torch.where(overflowed > 0, old, new))
        super()._move(scale)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "momenta": [*self.momenta.values()]}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for mine, saved in zip(self.momenta.values(), state["momenta"], strict=True):
            mine.copy_(saved)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix [rows, columns] with the same singular vectors, and all singular values near 1.

    Newton and Schulz's iteration runs on the Gram matrix of the shorter side, whose powers all
    commute: half the work on the filters of a network, and float32 is enough.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    wide = wide / wide.norm().clamp_min(1e-7)
    gram = wide @ wide.mT
    product = factor = _polynomial(gram)
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    found = product @ wide
    return found.mT.contiguous() if tall else found


def _polynomial(gram: Tensor) -> Tensor:
    first, third, fifth = POLYNOMIAL
    found = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
    found.diagonal().add_(first)
    return found
