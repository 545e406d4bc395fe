"""What the preparation draws of images."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data.data_report import Look, report
from pipeline.evaluation import audit
from pipeline.figures.sheets import image_sheet
from pipeline.images import png


def ink(images: png.Bytes) -> NDArray[np.float64]:
    """Mean brightness of each image, in % of the brightest."""
    return images.reshape(len(images), -1).mean(axis=1) / 2.55


LOOK = Look(
    column="image",
    read=png.read,
    sizes=lambda images, _facts: ink(images),
    unit="% of full ink",
    features=lambda splits: {name: audit.dense_features(part) for name, part in splits.items()},
    near=0.97,
    shown=24,
    sheet=lambda images, _facts, captions, title: image_sheet(images, captions, title, columns=8),
)
data_report = partial(report, LOOK)
