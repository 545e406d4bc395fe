"""Row 10: an epoch over ten times the rows."""

from functools import partial
from pathlib import Path

from bench.jobs import job
from bench.measure import Row, alternate, at_most, main, ratios, scratch, timed
from bench.synthetic import images

SMALL = 3000


def measure(quick: bool) -> list[Row]:
    """Random images of 28×28 through the `simple` CNN, whose own time is small."""
    with scratch() as folder:
        small = 100 if quick else SMALL
        epochs = {
            name: partial(_epoch, folder, images(folder / name, rows, 28, 1))
            for name, rows in (("small", small), ("large", 10 * small))
        }
        found = alternate(epochs, 1 if quick else 5)
    return [at_most(10, "epoch of 10 × the rows", 10.5, ratios(found["large"], found["small"]))]


def _epoch(folder: Path, data: Path) -> float:
    one = job("cnn", folder, "cnn=simple", "training.epochs=1", data=data)
    return timed(partial(one.ours, len(one.batches[0]), tracked=False))


if __name__ == "__main__":
    main("growth", measure)
