"""What evaluation shows of a network of images: filters, maps, patches."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.classification.data.examples import Raw
from pipeline.classification.evaluation.parts import PARTS as PARTS
from pipeline.classification.evaluation.repetition import compare_seeds
from pipeline.classification.evaluation.study import Study, open_study
from pipeline.classification.evaluation.subject import Corruption, Kind, Sizes, Subject
from pipeline.evaluation.features import Inputs, Point, capture, depths, forward, hooks
from pipeline.figures import depth as figures
from pipeline.figures.page import Page
from pipeline.figures.sheets import image_sheet
from pipeline.images import damage, png
from pipeline.tasks.image_classification.data_report import ink

CHANNELS, PATCHES = 5, 6
GRID = 4
"""Feature maps are pooled to this many cells a side before a probe sees them."""


def points(model: nn.Module, inputs: Inputs) -> list[Point]:
    """The last feature maps of each size, and what enters the head."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return [Point(stage.name, stage.module, _pool) for stage in map_stages(model, inputs)] + [
        Point("head's input", head, lambda args, _output, _inputs: args[0].flatten(1))
    ]


def _pool(_args: Sequence[Any], output: Tensor, _inputs: Inputs) -> Tensor:
    size = (min(GRID, output.shape[2]), min(GRID, output.shape[3]))
    return functional.adaptive_avg_pool2d(output, size).flatten(1)


class Maps(NamedTuple):
    """A module that ends a stage of a convolutional network, and the shape of its maps."""

    name: str
    module: nn.Module
    shape: tuple[int, int, int]


def map_stages(model: nn.Module, inputs: Inputs) -> list[Maps]:
    """The last module of each shape of feature maps (channels, height, width), in order."""
    size = tuple(inputs["images"].shape[1:])
    seen: dict[tuple[int, ...], nn.Module] = {}

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            shape = tuple(output.shape[1:])
            if shape != size and shape[1] * shape[2] > 1:
                seen.pop(shape, None)
                seen[shape] = module

    with hooks((module, note) for module in model.modules()):
        forward(model, inputs)
    return [
        Maps("×".join(map(str, shape)), module, (shape[0], shape[1], shape[2]))
        for shape, module in seen.items()
    ]


def feature_maps(
    model: nn.Module, inputs: Inputs, stages: Sequence[Maps]
) -> dict[str, NDArray[np.float32]]:
    """Feature maps float32 [n, channels, height, width] at each stage, by its name."""

    def copied(_args: Sequence[Any], output: Tensor, _inputs: Inputs) -> Tensor:
        return output.clone()  # a later module may write into its input

    where = [Point(stage.name, stage.module, copied) for stage in stages]
    found = capture(model, [inputs], where)
    return {stage.name: found[stage.name] for stage in stages}


def receptive_field(model: nn.Module, module: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Height and width in pixels of what one unit of `module` sees of an image.

    Measured, so that it holds for any network: the extent of the input's gradient for the unit in
    the middle, over a few noise images like `inputs` [1, channels, height, width]. A field larger
    than the image comes back cut by its borders.
    """
    generator = torch.Generator().manual_seed(0)
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


def pictures(page: Page, study: Study) -> None:
    """First filters, feature maps of one image, and the patches that excite maps most."""
    subject, test, name = study.subject, study.test, study.name
    model = subject.model
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return
    weights = first.weight.detach().float().cpu().numpy()
    height, width = weights.shape[2:]
    page.figure(
        "filters",
        figures.filters(weights, f"{name}: filters of the first layer"),
        title="The first layer's filters",
        text=f"Each square is one of the {len(weights)} filters of {height}×{width} pixels that "
        "the image is scanned with; red adds, blue takes away. Pairs of a red and a blue side find "
        "edges in one direction, a centre and its surround find spots.",
        alt=f"{min(len(weights), 32)} filters of {height} by {width} pixels as small coloured "
        "squares.",
    )
    chosen = int(study.right.argmax())  # the first one that is right
    example = subject.encode(test.raw[chosen : chosen + 1])
    stages = map_stages(model, example)
    maps = feature_maps(model, example, stages)
    page.figure(
        "maps",
        figures.maps(
            test.raw[chosen],
            {stage: part[0] for stage, part in maps.items()},
            f"{name}: one image through the network",
        ),
        title="One image on its way through the network",
        text=f"The eight strongest maps at each stage for test row {chosen}, a "
        f"{subject.classes[test.labels[chosen]]}; names are maps × height × width. Early maps "
        "still trace the strokes, late ones are coarse and say that a part is there.",
        alt=f"Feature maps of one image at {len(stages)} stages, from "
        f"{stages[0].name} to {stages[-1].name}.",
    )
    sheets = _patches(subject, test.raw[: study.parts.pictured], stages)
    page.figure(
        "patches",
        figures.patch_sheet(sheets, f"{name}: what excites a map most"),
        title="What each depth looks for",
        text="Every row is one map, and shows the pieces of test images that excite it most, as "
        "large as what one of its units can see. From early to late the pieces grow from an edge "
        "over a stroke to most of an object, and what a row has in common becomes the class.",
        alt="Patches of test images by depth: "
        + ", ".join(f"{part.depth} with {len(part.channels)} maps" for part in sheets),
    )


def _patches(
    subject: Subject, raw: NDArray[np.uint8], stages: Sequence[Maps]
) -> list[figures.Patches]:
    by_name = {stage.name: stage for stage in stages}
    chosen = {depth: by_name[stage] for depth, stage in depths(list(by_name)).items()}
    peaks: dict[str, list[NDArray[np.float32]]] = {depth: [] for depth in chosen}
    places: dict[str, list[NDArray[np.int64]]] = {depth: [] for depth in chosen}
    for start in range(0, len(raw), subject.batch_size):
        part = subject.encode(raw[start : start + subject.batch_size])
        maps = feature_maps(subject.model, part, list(chosen.values()))
        for depth, stage in chosen.items():
            found = maps[stage.name]
            flat = found.reshape(*found.shape[:2], -1)
            peaks[depth].append(flat.max(axis=2))
            places[depth].append(flat.argmax(axis=2))
    sheets = []
    for depth, stage in chosen.items():
        strength, where = np.concatenate(peaks[depth]), np.concatenate(places[depth])
        field = receptive_field(subject.model, stage.module, subject.encode(raw[:1])["images"])
        varied = np.argsort(-strength.std(axis=0), kind="stable")[:CHANNELS]
        rows = []
        for channel in varied:
            best = np.argsort(-strength[:, channel], kind="stable")[:PATCHES]
            rows.append([_cut(raw[i], where[i, channel], stage, field) for i in best])
        sheets.append(figures.Patches(depth, [int(channel) for channel in varied], rows))
    return sheets


def _cut(
    image: NDArray[np.uint8], place: int, stage: Maps, field: tuple[int, int]
) -> NDArray[np.uint8]:
    """The part of an image that the unit at `place` of a map sees, black beyond its borders."""
    starts = []
    for axis, index in enumerate(divmod(int(place), stage.shape[2])):
        scale = image.shape[axis + 1] / stage.shape[axis + 1]
        starts.append(round((index + 0.5) * scale - field[axis] / 2))
    padded = np.pad(image, ((0, 0), (field[0], field[0]), (field[1], field[1])))
    top, left = starts[0] + field[0], starts[1] + field[1]
    return padded[:, top : top + field[0], left : left + field[1]]


def _pixels(*splits: Raw) -> tuple[Any, ...]:
    """Images as vectors in 0..1."""
    return tuple(images.reshape(len(images), -1) / 255 for images in splits)


KIND = Kind(
    column="image",
    read=png.read,
    batches=None,
    points=points,
    vectors=_pixels,
    plain="pixels + logistic regression",
    features=lambda _subject, *splits: _pixels(*splits),
    sizes=lambda images, _facts: Sizes(
        "ink", ink(images).round().astype(np.int64), "% of full ink"
    ),
    corruptions=(
        Corruption(
            "noise", "standard deviation, share of the range", (0, 0.1, 0.2, 0.3, 0.4), damage.noise
        ),
        Corruption("blur", "radius in pixels", (0, 0.5, 1, 1.5, 2), damage.blur),
        Corruption("shift", "pixels", (0, 1, 2, 4, 6), damage.shift),
        Corruption("rotation", "degrees", (0, 10, 20, 30, 45), damage.rotate),
    ),
    sheet=lambda _subject, images, captions, title: image_sheet(images, captions, title),
    pictures=pictures,
)
study, repetition = partial(open_study, KIND), partial(compare_seeds, KIND)
