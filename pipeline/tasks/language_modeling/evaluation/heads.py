"""Heads of attention that find what stood before (induction heads, Olsson et al. 2022)."""

from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.figures.page import Page
from pipeline.figures.style import canvas
from pipeline.tasks.language_modeling.evaluation.study import Study, decoder

ROWS = 4


def heads(page: Page, study: Study) -> None:
    """Bits of random tokens that are repeated, and each head's weight on what came after them.

    A head's score is the mean attention, in the second run, to the token behind the earlier
    occurrence of the one that is read: what a copy needs. Evenly spread attention has about one by
    the number of tokens.
    """
    length = min(study.parts.repeated_tokens, study.net.settings.context // 2)
    generator = torch.Generator().manual_seed(study.settings.seed)
    size = study.net.tokenizer.get_vocab_size()
    run = torch.randint(size, (ROWS, length), generator=generator)
    module: Any = decoder(study.net)
    bits, weights = _watched(module, torch.cat([run, run], dim=1).to(study.hardware.device))
    first, second = float(bits[:, : length - 1].mean()), float(bits[:, length:].mean())
    page.numbers |= {"heads/first_bits": first, "heads/second_bits": second}
    said = f"random tokens took {first:.1f} bits each, and {second:.1f} when they came again"
    if not weights:
        page.facts["repeated tokens"] = f"{said}; its attention can't be watched"
        return
    found = np.array([_induction(one, length) for one in weights])
    page.numbers["heads/best"] = float(found.max())
    layer, head = np.unravel_index(found.argmax(), found.shape)
    page.facts["repeated tokens"] = (
        f"{said}; the head that looks most for a copy is {head} of layer {layer + 1}, with "
        f"{found.max():.0%} of its attention"
    )
    _draw(page, found, length, said)
    rows = [
        {"layer": at + 1, "head": head, "induction": value}
        for at, values in enumerate(found.tolist())
        for head, value in enumerate(values)
    ]
    page.table("heads", rows, ["layer", "head", "induction"])


def _draw(page: Page, found: NDArray[np.float64], length: int, said: str) -> None:
    figure = canvas(max(3.0, 0.3 * found.shape[1] + 1.6), max(2.4, 0.16 * len(found) + 1))
    axes = figure.subplots()
    image = axes.imshow(found, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower",
                        extent=(-0.5, found.shape[1] - 0.5, 0.5, len(found) + 0.5))  # fmt: skip
    axes.set(xlabel="head", ylabel="layer")
    figure.colorbar(image, ax=axes, label="attention")
    page.figure(
        "heads",
        figure,
        title="Which heads copy",
        text=f"{ROWS} × {length} random tokens, each run shown twice: how much of its attention a "
        "head gives, in the second run, to the token that came after the earlier occurrence. "
        f"{said[0].upper()}{said[1:]}.",
        alt=f"Attention of {found.size} heads; the highest has {found.max():.2f}.",
    )


def _watched(module: Any, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Bits of each token but the first [rows, tokens - 1]; attention of each layer."""
    config = module.llama.config
    before = config._attn_implementation
    try:
        module.llama.set_attn_implementation("eager")  # the only one that gives its weights
        with torch.inference_mode():
            said = module.states(ids, output_attentions=True)
            logits = module.logits(said.last_hidden_state[:, :-1].flatten(0, 1))
    finally:
        module.llama.set_attn_implementation(before)
    nats = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    found = [one for one in said.attentions or () if one is not None]
    return (nats / log(2)).view(len(ids), -1), found


def _induction(weights: Tensor, length: int) -> list[float]:
    """Of each head by its attention [rows, heads, 2 · length, 2 · length]."""
    found: list[float] = (
        weights[:, :, length:].diagonal(1, dim1=2, dim2=3).cpu().double().mean((0, 2)).tolist()
    )
    return found
