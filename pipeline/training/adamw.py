"""AdamW by torch's fused kernel, called directly, and how its learning rate goes."""

import math
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) over float32 parameters; matrices and filters decay.

    Biases and norms, which have one dimension, do not decay. The arithmetic is that of
    `torch.optim.AdamW(fused=True)`, to the bit as long as nothing is clipped. Making one of those
    imports torch's compiler (0.9 s of every start), and a step of it takes 0.1 ms more.

    Sparse gradients, as `nn.Embedding(sparse=True)` has them, count as dense ones with zeros in the
    other rows: all rows move and decay.

    With float16, `torch.amp.GradScaler.step` leaves its scale and its finding here, both on the
    device: nothing is fetched from it, and a step whose gradients overflowed changes nothing.

    Args:
        parameters: those without `requires_grad` are left out.
        weight_decay: decoupled.
        betas: decay of the running means of the gradient and of its square.
        apart: those that a subclass moves; the last of `param_groups`.
    """

    # By this GradScaler knows that for the time of a step it may set these two.
    _step_supports_amp_scaling = True
    grad_scale: Tensor
    found_inf: Tensor

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        weight_decay: float,
        betas: Sequence[float],
        apart: Set[nn.Parameter] = frozenset(),
    ) -> None:
        trained = [p for p in parameters if p.requires_grad]
        others = [p for p in trained if p not in apart]
        self.betas = tuple(betas)
        # By this name, torch's GradScaler finds the gradients.
        self.param_groups: list[dict[str, Any]] = [
            {"params": [p for p in others if (p.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, weight_decay), (False, 0.0))
        ]
        self.lr = 0.0
        self.steps = torch.zeros((), device=trained[0].device)
        self.means = [[torch.zeros_like(p) for p in group["params"]] for group in self.param_groups]
        self.squares = [
            [torch.zeros_like(p) for p in group["params"]] for group in self.param_groups
        ]
        self.param_groups.append({"params": [*apart], "weight_decay": weight_decay})
        # torch's kernel for Apple's GPUs takes the argument and does not use it
        self._kernel_scales = trained[0].device.type != "mps"
        self._dense: dict[nn.Parameter, Tensor] = {}
        """Zeros between two steps; to fill as many anew takes longer than to move the rows."""

    @torch.no_grad()
    def step(self, clip_norm: float | None = None) -> None:
        """Move the parameters against their gradients, by the learning rate `lr`.

        The gradients are used up; call `zero_grad` before the next backward pass.

        Args:
            clip_norm: what the norm of all gradients together is scaled down to (Pascanu et al.
                2013), in the pass that the kernel makes over them anyway.
        """
        used = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        rows = {}
        for parameter in used:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                rows[parameter] = parameter.grad.indices()[0]
        gradients = [p.grad.values() if p in rows else p.grad for p in used]
        scale = getattr(self, "grad_scale", None)
        if clip_norm is not None and gradients:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            limit = clip_norm if scale is None else clip_norm * scale
            excess = (norm / limit).clamp(min=1.0)
            scale = excess if scale is None else excess * scale
        if scale is not None and not self._kernel_scales:
            torch._foreach_div_(gradients, scale)
        for parameter, touched in rows.items():
            if parameter not in self._dense:
                self._dense[parameter] = torch.zeros_like(parameter)
            values = parameter.grad.values()
            parameter.grad = self._dense[parameter].index_copy_(0, touched, values)
        self._move(scale if self._kernel_scales else None)
        for parameter, touched in rows.items():
            self._dense[parameter].index_fill_(0, touched, 0.0)
            parameter.grad = None

    def _move(self, scale: Tensor | None) -> None:
        self.steps += 1
        overflowed = getattr(self, "found_inf", None)
        own = self.param_groups[:2]
        for group, means, squares in zip(own, self.means, self.squares, strict=True):
            used = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            if not used:
                continue
            torch._fused_adamw_(
                [group["params"][i] for i in used],
                [group["params"][i].grad for i in used],
                [means[i] for i in used],
                [squares[i] for i in used],
                [],
                [self.steps] * len(used),
                lr=self.lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=overflowed,
            )
        if overflowed is not None:
            self.steps -= overflowed

    def zero_grad(self) -> None:
        """Let the gradients go."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors; not copies."""
        return {"steps": self.steps, "means": self.means, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of the same parameters."""
        self.steps.copy_(state["steps"])
        for mine, saved in ((self.means, state["means"]), (self.squares, state["squares"])):
            for group, values in zip(mine, saved, strict=True):
                for tensor, value in zip(group, values, strict=True):
                    tensor.copy_(value)


def schedule(step: int, total: int, kind: str, warmup: float) -> float:
    """Factor of the peak learning rate at optimizer step `step`, counted from 0.

    It rises on a line over the first `warmup` share of the steps, then stays (`constant`) or falls
    to zero on a line (`linear`) or a half cosine (`cosine`; Loshchilov & Hutter 2017).
    """
    rise = round(total * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1, total - rise)
    if kind == "linear":
        return 1 - done
    if kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
