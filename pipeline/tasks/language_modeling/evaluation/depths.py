"""A linear read-out of each depth."""

from collections.abc import Callable, Sequence
from math import log

import numpy as np
import torch
from torch import Tensor

from pipeline.figures.page import Page
from pipeline.figures.style import CYCLE, LINES, MARKERS, canvas
from pipeline.tasks.language_modeling.data import documents
from pipeline.tasks.language_modeling.evaluation.study import BATCH, Study, decoder
from pipeline.texts.chats import Document
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

RIDGE = 1e-3
"""Of a read-out, as a share of the mean variance of what it reads."""
DEPTHS = 6


def read_out(page: Page, study: Study) -> None:
    """Bits per byte of a linear read-out of each depth, of the network after and before training.

    A ridge regression from the states of a depth to those after the last norm, which the network's
    own unembedding then reads (as the tuned lens of Belrose et al. 2023, in closed form).
    """
    count = study.parts.depth_documents
    fitted, tested = study.split("validation", count), study.texts[:count]
    with study.untouched() as net:
        before = _by_depth(net, fitted, tested, study.hardware)
    found = {"after": _by_depth(study.net, fitted, tested, study.hardware), "before": before}
    figure = canvas(6, 3)
    axes = figure.subplots()
    for number, (label, values) in enumerate(found.items()):
        axes.plot(list(values), list(values.values()), color=CYCLE[number], ls=LINES[number],
                  marker=MARKERS[number], label=f"{label} training")  # fmt: skip
    axes.set(xlabel="layer (0: the embeddings)", ylabel="bits per byte")
    axes.grid()
    axes.legend()
    page.figure(
        "depths",
        figure,
        title="Where the answer is made",
        text="What a linear read-out of each depth knows of the next token: fitted on "
        f"{len(fitted)} validation documents, measured on the first {len(tested)} test documents. "
        "A straight line down is work shared by all layers; a flat end is layers that add little.",
        alt="; ".join(f"layer {layer}: {bits:.2f}" for layer, bits in found["after"].items()),
    )
    rows = [
        {"network": label, "layer": layer, "bits_per_byte": value}
        for label, values in found.items()
        for layer, value in values.items()
    ]
    page.table("depths", rows, ["network", "layer", "bits_per_byte"])


def _by_depth(
    net: Net, fitted: Sequence[Document], tested: Sequence[Document], hardware: Hardware
) -> dict[int, float]:
    layers = decoder(net).llama.config.num_hidden_layers
    chosen = np.unique(np.linspace(0, layers, min(layers + 1, DEPTHS)).round()).astype(int).tolist()
    seen, _, _ = _states(net, fitted, chosen, hardware)
    told, targets, size = _states(net, tested, chosen, hardware)
    found = {}
    for layer in chosen:
        states = told[layer]
        if layer < layers:
            states = _fitted(seen[layer], seen[layers])(states)
        with torch.inference_mode(), hardware.autocast():
            found[layer] = (
                float(decoder(net).judge(states, targets).nats.cpu().double().sum()) / log(2) / size
            )
    return found


def _fitted(states: Tensor, last: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression [n, width] → [n, width] in float64, which not every device has."""
    before, after = states.cpu().double(), last.cpu().double()
    middle, end = before.mean(0), after.mean(0)
    centred = before - middle
    square = centred.T @ centred
    square += torch.eye(len(square), dtype=square.dtype) * (RIDGE * square.diagonal().mean())
    weights = torch.linalg.solve(square, centred.T @ (after - end))
    return lambda told: ((told.cpu().double() - middle) @ weights + end).float().to(told.device)


def _states(
    net: Net, texts: Sequence[Document], chosen: Sequence[int], hardware: Hardware
) -> tuple[dict[int, Tensor], Tensor, int]:
    """States of the tokens that count at some depths, the targets, and the documents' bytes."""
    rows = documents(texts, net)
    found: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    every, size = [], 0
    for index in torch.arange(len(texts)).split(BATCH):
        inputs, targets = rows.gather(index)
        ids, tokens = (part.to(hardware.device) for part in (inputs["input_ids"], targets.tokens))
        with torch.inference_mode(), hardware.autocast():
            states = decoder(net).states(ids, output_hidden_states=True).hidden_states
        for layer in chosen:
            found[layer].append(states[layer][tokens >= 0].float())
        every.append(tokens[tokens >= 0])
        size += targets.size
    return {layer: torch.cat(part) for layer, part in found.items()}, torch.cat(every), size
