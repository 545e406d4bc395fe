"""Which part of an input an answer comes from."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.evaluation.features import Inputs, hooks, logits_of


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


class TokenAttribution(NamedTuple):
    """One text taken apart.

    Attributes:
        tokens: as the tokenizer cut it, without padding.
        scores: float64 [tokens]; what each adds to the logit of `target`; they sum to `total`.
        target: class index.
        total: logit of the text minus that of a text of padding.
    """

    tokens: list[str]
    scores: NDArray[np.float64]
    target: int
    total: float


def token_attribution(
    model: nn.Module, tokenizer: Any, inputs: Inputs, steps: int = 32
) -> TokenAttribution:
    """Attribute the predicted class's logit of one text to its tokens by integrated gradients.

    `model` is a transformers classifier, `inputs` a batch of one. The baseline keeps the special
    tokens and puts the padding token's embedding in place of every other.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embed = model.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        target = int(logits_of(model(**inputs)).argmax())
        point = embed(ids)[0]
        special = torch.isin(ids, ids.new_tensor(tokenizer.all_special_ids))[0]
        padding = embed(ids.new_tensor(tokenizer.pad_token_id or 0))
        baseline = torch.where(special[:, None], point, padding)

    def logit(path: Tensor) -> Tensor:
        output = model(inputs_embeds=path, attention_mask=mask.expand(len(path), -1))
        return logits_of(output)[:, target].float()

    scores = integrated_gradients(logit, point, baseline, steps).sum(dim=-1)
    with torch.no_grad():
        ends = logit(torch.stack([baseline, point]))
    kept = mask[0].bool()
    tokens = tokenizer.convert_ids_to_tokens(ids[0][kept].tolist())
    return TokenAttribution(
        tokens, scores[kept].double().cpu().numpy(), target, float(ends[1] - ends[0])
    )


def attention_maps(model: nn.Module, inputs: Inputs) -> NDArray[np.float32]:
    """Attention weights float32 [layers, heads, from, to] of one text; rows sum to 1.

    The fused kernels don't return them, so the model attends in plain steps for this one call.
    """
    config: Any = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        with torch.no_grad():
            maps = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]
    return torch.cat([layer.float() for layer in maps]).cpu().numpy()


def evidence_over_time(model: nn.Module, inputs: Inputs, last: nn.Module) -> NDArray[np.float32]:
    """What each moment adds to each class's logit: float32 [steps, classes], for one clip.

    `last` is the module whose output [1, steps, units] is pooled over time. Hidden state times the
    gradient of the logit: where the head is linear in the pooled states this is exact, and sums
    over time to the logit less the head's bias.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[0]

    with torch.enable_grad(), hooks([(last, keep)]):
        logits = logits_of(model(**inputs))[0].float()
    gradients = [torch.autograd.grad(logit, seen[0], retain_graph=True)[0] for logit in logits]
    parts = [(gradient * seen[0]).detach().float().sum(dim=-1)[0] for gradient in gradients]
    return torch.stack(parts, dim=1).cpu().numpy()


def receptive_field(
    model: nn.Module, module: nn.Module, inputs: Tensor, seed: int = 0
) -> tuple[int, int]:
    """Height and width in pixels of what one unit of `module` sees of an image.

    Measured, so that it holds for any network: the extent of the input's gradient for the unit in
    the middle, over a few noise images like `inputs` [1, channels, height, width]. A field larger
    than the image comes back cut by its borders.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (16, *inputs.shape[1:]), generator=generator)
    images = noise.float().requires_grad_(True)
    # On the CPU: pooling has no deterministic backward pass on every device.
    name = next(name for name, part in model.named_modules() if part is module)
    model = copy.deepcopy(model).cpu()
    module = model.get_submodule(name)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        # A copy: a later module may write into its input.
        seen.append(output.clone())

    with torch.enable_grad(), hooks([(module, keep)]):
        model(images=images)
    middle = seen[-1][:, :, seen[-1].shape[2] // 2, seen[-1].shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), images)
    touched = (gradient != 0).any(dim=0).any(dim=0)
    rows, columns = touched.any(dim=1).nonzero(), touched.any(dim=0).nonzero()
    if not len(rows):
        return tuple(inputs.shape[2:])  # type: ignore[return-value]
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
