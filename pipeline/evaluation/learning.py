"""The learning curve of any model."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.figures import curves
from pipeline.figures.page import Page
from pipeline.figures.style import written
from pipeline.task import About


def learning(
    page: Page, curve: Sequence[Mapping[str, str]], name: str, about: About, loss_unit: str
) -> None:
    """Draw loss, headline and learning rate by epoch, if there was one.

    Args:
        page: where they are shown.
        curve: rows of the training's table; has `validation_<headline>`.
        name: what figures call the model.
        about: the task, for its headline.
        loss_unit: what its loss is measured in.
    """
    if not curve:
        return
    scores = [float(row[f"validation_{about.headline}"]) for row in curve]
    best = int(np.argmin(scores) if about.headline in about.falling else np.argmax(scores))
    value = written(scores[best], about.unit)
    page.figure(
        "learning_curves",
        curves.learning_curves(curve, about, best, loss_unit, f"{name}: learning curves"),
        title="Learning curves",
        text=f"Validation {about.words} is best after epoch {curve[best]['epoch']} of "
        f"{len(curve)}: {value}. A training loss that parts company with what validation says "
        "shows memorising; both still improving at the end ask for more epochs.",
        alt=f"Loss, validation {about.words} and learning rate over {len(curve)} epochs; best "
        f"validation {about.words} {value}.",
    )
