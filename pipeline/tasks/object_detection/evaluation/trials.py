"""What evaluation asks of a detector besides: its cells, damaged images, simpler rules."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.figures.curves import robustness_curves
from pipeline.figures.depth import probe_curves
from pipeline.figures.page import Page
from pipeline.images.damage import blur, noise
from pipeline.tasks.object_detection.evaluation import baselines, matches
from pipeline.tasks.object_detection.evaluation.probes import probe_cells
from pipeline.tasks.object_detection.evaluation.study import Study
from pipeline.tasks.object_detection.settings import TTFNet

DAMAGES: dict[str, tuple[str, tuple[float, ...], Callable[[Any, float, int], Any]]] = {
    "noise": ("standard deviation, share of the range", (0, 0.05, 0.1, 0.2), noise),
    "blur": ("radius in pixels", (0, 0.5, 1, 2), blur),
    "contrast": (
        "share that is lost",
        (0, 0.3, 0.5, 0.7),
        lambda images, lost, _: _cut((images.astype(np.float32) - 128) * (1 - lost) + 128),
    ),
    "inversion": (
        "inverted or not",
        (0, 1),
        lambda images, inverted, _: 255 - images if inverted else images,
    ),
}


def probes(page: Page, study: Study) -> None:
    """What a linear probe reads off a single cell of a heat map's network."""
    if not isinstance(study.net.settings, TTFNet):
        return
    train = study.train.first(study.parts.probe_train)
    test = study.test.first(study.parts.probe_test)
    found = probe_cells(study.net, train, test, study.hardware, study.settings.seed)
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
        probe_curves(found),
        title="What a cell knows, by depth",
        text="A linear probe sees the maps at one cell: is it the middle of a thing or no part of "
        "one, and if it is one, which? Depths are named by the pixels from cell to cell, back is "
        "the way back to 4. The untrained network shows what the architecture gives away.",
        alt=", ".join(f"{question} {value:.1%} at the end" for question, value in last.items()),
    )


def robustness(page: Page, study: Study) -> None:
    """Mean average precision on damaged images."""
    images, truth, ignored = test = study.test.first(study.parts.damaged)
    seed = study.settings.seed
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for kind, (_, severities, damage) in DAMAGES.items():
        points[kind] = []
        for severity in severities:
            changed = [damage(image[None], severity, seed + n)[0] for n, image in enumerate(images)]
            found = study.detect(changed)
            value = study.judge(found, test).map
            value = 0.0 if np.isnan(value) else value
            made = matches.match(found, truth, ignored)
            points[kind].append((severity, value, *matches.interval(made, value, seed, 200)))
    rows = [
        {"kind": kind, "severity": point[0], "map": point[1], "low": point[2], "high": point[3]}
        for kind, found in points.items()
        for point in found
    ]
    page.table("robustness", rows, ["kind", "severity", "map", "low", "high"])
    page.numbers |= {f"robustness/{kind}": found[-1][1] for kind, found in points.items()}
    units = {kind: unit for kind, (unit, _, _) in DAMAGES.items()}
    page.figure(
        "robustness",
        robustness_curves(points, units, 0, f"{study.name}: damaged images", "mAP"),
        title="How it stands damage",
        text=f"Mean average precision on {len(images)} test images with damage that training did "
        "not show, or showed less of, and its 95 % interval.",
        alt=", ".join(f"{kind}: {found[0][1]:.1%} to {found[-1][1]:.1%}"
                      for kind, found in points.items()),
    )  # fmt: skip


def simple(page: Page, study: Study) -> None:
    """What simpler rules find, on the images that they were measured on."""
    parts, test = study.parts, study.test
    train = study.train.first(parts.hog_train)
    rules = {
        "most frequent box": (len(test.images), baselines.frequent),
        "HOG + linear": (parts.hog_test, baselines.sliding),
    }
    rows = []
    for rule, (most, find) in rules.items():
        part = test.first(most)
        found = find(train, part.images, len(study.classes), study.settings.seed)
        there, ours = study.judge(found, part), study.judge(study.found[:most], part)
        page.numbers |= {
            f"baseline/{rule}/map": there.map,
            f"baseline/{rule}/map_50": there.map_50,
            f"baseline/{rule}/gain": ours.map - there.map,
        }
        rows.append(
            [rule, str(len(part.images)), f"{there.map:.1%}", f"{there.map_50:.1%}",
             f"{ours.map:.1%}", f"{ours.map_50:.1%}"]
        )  # fmt: skip
    page.show(
        f"Against simple rules, which learn from {len(train.images):,} images",
        ["Rule", "Test images", "mAP", "mAP at 0.5", "The detector's", "at 0.5"],
        rows,
    )


def _cut(images: Any) -> Any:
    return np.clip(images.round(), 0, 255).astype(np.uint8)
