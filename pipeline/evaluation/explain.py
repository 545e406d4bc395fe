"""Which part of an input an answer comes from."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def integrated_gradients(
    function: Callable[[Tensor], Tensor], point: Tensor, baseline: Tensor, steps: int = 32
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017) of a scalar `function` at `point`.

    `function` maps a batch [steps, …] to [steps]; `point` and `baseline` are single inputs of the
    same shape. Gauss-Legendre quadrature along the straight line between them, all points in one
    batch. The result has the shape of `point` and sums to f(point) - f(baseline).
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    along = point.new_tensor((nodes + 1) / 2).view(-1, *[1] * point.dim())
    shares = point.new_tensor(weights / 2).view_as(along)
    path = (baseline + along * (point - baseline)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(path).sum(), path)
    return (point - baseline) * (gradient * shares).sum(dim=0)
