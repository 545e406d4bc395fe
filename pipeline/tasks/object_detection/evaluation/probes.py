"""What a linear probe reads off single cells of a heat map's network."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.evaluation.features import forward, hooks, untrained
from pipeline.evaluation.intervals import share
from pipeline.evaluation.probes import probe
from pipeline.figures.depth import Estimate, probe_panels
from pipeline.figures.page import Page
from pipeline.tasks.object_detection.boxes.read import Boxes, Split
from pipeline.tasks.object_detection.data import inputs, scales
from pipeline.tasks.object_detection.evaluation.study import Study
from pipeline.tasks.object_detection.settings import TTFNet
from pipeline.training.hardware import Hardware
from pipeline.training.net import Net

AT_ONCE = 100
AROUND = 2
"""Pixels on each side of one that the probe of the input sees, too."""
TRIES = 20
Curves = dict[str, dict[str, dict[str, Estimate]]]


def probes(page: Page, study: Study) -> None:
    """Accuracy of the probes by depth, of the trained and of the untrained network."""
    if not isinstance(study.net.settings, TTFNet):
        return
    train = study.train.first(study.parts.probe_train)
    test = study.test.first(study.parts.probe_test)
    found = _probed(study.net, train, test, study.hardware, study.settings.seed)
    if found is None:
        return
    rows = [
        {"question": question, "network": network, "depth": depth, "accuracy": one.value,
         "low": one.low, "high": one.high}
        for question, networks in found.items()
        for network, points in networks.items()
        for depth, one in points.items()
    ]  # fmt: skip
    page.table("probes", rows, list(rows[0]))
    last = {question: list(one["trained"].values())[-1].value for question, one in found.items()}
    page.figure(
        "probes",
        probe_panels(found),
        title="What a cell knows, by depth",
        text="A linear probe sees the maps at one cell: is it the middle of a thing or no part of "
        "one, and if it is one, which? Depths are named by the pixels from cell to cell, back is "
        "the way back to 4. The untrained network shows what the architecture gives away.",
        alt=", ".join(f"{question} {value:.1%} at the end" for question, value in last.items()),
    )


def _probed(net: Net, train: Split, test: Split, hardware: Hardware, seed: int) -> Curves | None:
    """Accuracy of linear probes by depth: {question: {network: {depth: accuracy}}}.

    A probe sees one cell: the middle of a thing, or a place that is in no box. One asks whether
    there is a thing; one, of the middles of things, which. None where too few things are there.
    """
    points, labels = _places(train, net, seed)
    test_points, test_labels = _places(test, net, seed + 1)
    thing, test_thing = labels >= 0, test_labels >= 0
    if min(np.unique(labels[thing]).size, thing.sum(), test_thing.sum()) < 2:
        return None
    found: Curves = {"object or not": {}, "which class": {}}
    for name, module in (("trained", net.module), ("untrained", untrained(net.module, seed))):
        learnt = _cells(module, train, net, points, hardware)
        asked = _cells(module, test, net, test_points, hardware)
        for depth, cells in learnt.items():
            test_cells, is_thing = asked[depth], test_thing.astype(np.int64)
            answers = {
                "object or not": probe(cells, thing.astype(np.int64), test_cells, is_thing, seed),
                "which class": probe(
                    cells[thing],
                    labels[thing],
                    test_cells[test_thing],
                    test_labels[test_thing],
                    seed,
                ),
            }
            for question, hits in answers.items():
                value, spread = share(hits)
                found[question].setdefault(name, {})[depth] = Estimate(value, *spread)
    return found


def _places(split: Split, net: Net, seed: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Points (image, x, y) in the network's pixels, and the class of the thing there, or -1."""
    generator, places, labels = np.random.default_rng(seed), [], []
    for number, (image, boxes) in enumerate(zip(split.images, split.boxes, strict=True)):
        height, width = image.shape[1:]
        scale = np.array(scales(height, width, net.settings.size))
        for (x1, y1, x2, y2), label in zip(boxes.corners, boxes.labels, strict=True):
            places.append((number, *((x1 + x2) / 2, (y1 + y2) / 2) * scale))
            labels.append(int(label))
        for _ in range(max(1, len(boxes.labels))):
            free = _free(boxes, generator.uniform(0, (width, height), (TRIES, 2)))
            if free is not None:
                places.append((number, *free * scale))
                labels.append(-1)
    return np.array(places), np.array(labels, np.int64)


def _free(boxes: Boxes, points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The first of the points [n, 2] that is in no box."""
    corners = boxes.corners[:, None]
    inside = ((points > corners[..., :2]) & (points < corners[..., 2:])).all(-1).any(0)
    return None if inside.all() else points[~inside][0]


def _cells(
    module: nn.Module, split: Split, net: Net, points: NDArray[Any], hardware: Hardware
) -> dict[str, NDArray[np.float32]]:
    """The maps at each point [n, maps], at each depth."""
    named = dict(module.named_modules())
    wanted = {
        str(2 ** (number + 2)): named[f"stages.{number}"]
        for number in range(len(net.settings.channels))
    } | {
        f"back {2 ** (len(net.settings.channels) - number)}": named[f"necks.{number}"]
        for number in range(len(net.settings.channels) - 1)
    }
    found: dict[str, list[NDArray[np.float32]]] = {"pixels": [], **{name: [] for name in wanted}}
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: maps.__setitem__(name, output.detach().float())

    for start in range(0, len(split.images), AT_ONCE):
        batch = inputs(split.images[start : start + AT_ONCE], net)
        here = points[(points[:, 0] >= start) & (points[:, 0] < start + AT_ONCE)]
        with hooks((one, keep(name)) for name, one in wanted.items()):
            device = {name: value.to(hardware.device) for name, value in batch.items()}
            with hardware.autocast():
                forward(module, device)
        pixels = pad(batch["images"].float(), (AROUND,) * 4, mode="replicate")
        size = net.settings.size
        near = torch.cat(
            [
                pixels[:, :, down : down + size, right : right + size]
                for down in range(2 * AROUND + 1)
                for right in range(2 * AROUND + 1)
            ],
            1,
        )
        image = here[:, 0].astype(int) - start
        for name, part in ({"pixels": near} | maps).items():
            cell = (here[:, 1:] * part.shape[-1] / size).astype(int).clip(0, part.shape[-1] - 1)
            found[name].append(part.cpu().numpy()[image, :, cell[:, 1], cell[:, 0]])
    return {name: np.concatenate(parts) for name, parts in found.items()}
