"""A trained classifier, and how it is shown raw examples."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.classification.data.examples import Raw, Read, take
from pipeline.errors import PipelineError
from pipeline.evaluation.features import Inputs, Point, capture
from pipeline.figures.sheets import Caption
from pipeline.training.net import Net

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.figures.page import Page


class Corruption(NamedTuple):
    """A kind of damage, its unit, and the severities to try; the first one is none."""

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[Any, float, int], Any]


class Sizes(NamedTuple):
    """How large examples are: what that is called, a number for each, its unit."""

    kind: str
    values: NDArray[Any]
    unit: str


@dataclass(frozen=True)
class Kind:
    """What classifiers of images, texts and sounds differ in.

    Attributes:
        column: of the prepared tables, the one that holds the examples.
        read: makes raw examples of it.
        batches: how many batches of similar length a split is cut into, at least; None where all
            examples have one size.
        points: the stages of a network from its input to its head, in the order of computing.
        vectors: raw training and test examples as plain vectors, for the probe of the input.
        plain: what the simple classifier is called that the model is compared with.
        features: its features of the training and the test examples.
        sizes: of raw examples.
        corruptions: damage that the model should bear.
        sheet: a figure of raw examples with a caption each, and a title.
        pictures: what else can be seen in the network; see `parts.PARTS`.
        text: of one raw example, for tables and tips.
    """

    column: str
    read: Read
    batches: int | None
    points: Callable[[nn.Module, Inputs], list[Point]]
    vectors: Callable[[Raw, Raw], tuple[Any, Any]]
    plain: str
    features: "Callable[[Subject, Raw, Raw], tuple[Any, Any]]"
    sizes: Callable[[Raw, Any], Sizes]
    corruptions: Sequence[Corruption]
    sheet: "Callable[[Subject, Raw, Sequence[Caption], str], Figure]"
    pictures: "Callable[[Page, Any], None]"
    text: Callable[[Any], str] = lambda _example: ""


@dataclass(frozen=True)
class Subject:
    """A trained classifier on its device, and how it is shown raw examples."""

    net: Net
    kind: Kind
    device: torch.device
    batch_size: int
    autocast: Callable[[], AbstractContextManager[Any]]
    """Makes the context of mixed precision, once for each pass over a split."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.net.module

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.net.facts.classes

    def encode(self, raw: Raw) -> Inputs:
        """The model's inputs for raw examples, on its device."""
        inputs = self.net.task.data.encode(raw, self.net)
        return {name: part.to(self.device) for name, part in inputs.items()}

    def batches(self, raw: Raw) -> list[NDArray[np.int64]]:
        """Row numbers of batches that hold examples of similar length."""
        order, size = np.arange(len(raw)), self.batch_size
        if self.kind.batches is not None:
            order = np.argsort([len(example) for example in raw], kind="stable")
            # Several batches: one of all lengths would be half padding.
            size = min(size, max(16, -(-len(raw) // self.kind.batches)))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def logits(self, raw: Raw) -> NDArray[np.float32]:
        """Logits float32 [n, classes] of raw examples, in their order.

        Raises:
            PipelineError: one is not finite; says of how many examples, and the first row.
        """
        logits = self.features(raw, [])["logits"]
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise PipelineError(
                f"the model's output is not finite for {len(bad)} of {len(logits)} examples "
                f"(first: row {bad[0]}); train it again with a lower optimizer.lr or precision=fp32"
            )
        return logits

    def features(
        self, raw: Raw, where: Sequence[Point] | None = None, model: nn.Module | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Features at all stages (or `where`) and `logits`, in the order of the examples.

        `model` is another model of the same kind to take them from.
        """
        model = model or self.model
        rows = self.batches(raw)
        inputs = (self.encode(take(raw, part)) for part in rows)
        if where is None:
            where = self.kind.points(model, self.encode(take(raw, [0])))
        found = capture(model, inputs, where, self.autocast())
        back = np.argsort(np.concatenate(rows), kind="stable")
        return {name: values[back] for name, values in found.items()}
