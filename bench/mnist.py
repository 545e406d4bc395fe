"""Row 1: the full MNIST to 99 % test accuracy, against pytorch/examples' mnist program.

The peer is written here after that program: two convolutions, two linear layers, dropout, Adadelta
with learning rate 1 and a factor of 0.7 an epoch, batches of 64 from a DataLoader over Pillow
images. Its clock stops after the first epoch, from process start, that ends at 99.0 %.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import (
    Row,
    answer,
    at_least,
    at_most,
    main,
    mnist,
    no_mnist,
    prepare,
    scratch,
    stage,
)  # fmt: skip

RECIPE = ("cnn.depth=1", "training.epochs=2", "training.batch_size=128", "optimizer.lr=0.01",
          "training.label_smoothing=0.0", "augment.degrees=10", "augment.translate=0.08",
          "augment.scale=0.1")  # fmt: skip
GOAL = 0.99


def measure(quick: bool) -> list[Row]:
    """Three seeds of ours, tracking and checkpoints on; the peer's seeds beside them."""
    source = mnist()
    if source is None:
        return [no_mnist(1, "full MNIST to 99.0 %, time against pytorch/examples", "≤ 0.083 ×")]
    cap = ["profile=tiny"] if quick else []
    with scratch() as folder:
        data = prepare(
            folder, "image", "image=mnist", f"image.folder={source}", "image.validation=0.02", *cap
        )
        ours: list[tuple[float, float]] = []
        peer: list[float] = []
        for seed in range(1 if quick else 3):
            ours.append(_ours(folder, data, seed, *cap))
            peer.append(answer("bench.mnist", source, str(seed), str(int(quick)))["seconds"])
    shares = [seconds / other for (seconds, _), other in zip(ours, peer, strict=True)]
    accuracy = [100 * found for _, found in ours]
    mean = statistics.mean(accuracy)
    seconds = statistics.median(one for one, _ in ours)
    what = f"full MNIST to 99.0 %, {seconds:.1f} s, of the time of pytorch/examples' program"
    return [
        at_most(1, what, 1 / 12, shares),
        at_least(1, f"its test accuracy (mean of 3 seeds {mean:.2f} %)", 99.0, accuracy, "%"),
    ]


def _ours(folder: Path, data: Path, seed: int, *more: str) -> tuple[float, float]:
    weights = folder / f"model{seed}"
    seconds = stage(
        folder, "train_cnn", f"data={data}", f"output={weights}", f"curve={folder}/c.csv",
        f"seed={seed}", *RECIPE, *more,
    )  # fmt: skip
    return seconds, answer("bench.mnist", str(weights), str(data))["accuracy"]


def _test(weights: Path, data: Path) -> dict[str, Any]:
    import torch

    from pipeline import models
    from pipeline.data import image

    model = models.load(weights).model
    test = image.load(data, "test", batch_size=1000, device=torch.device("cpu"))
    with torch.inference_mode():
        hits = sum(int((model(**b.inputs).argmax(1) == b.labels).sum()) for b in test.epoch(0))
    return {"accuracy": hits / test.examples}


def _peer(source: Path, seed: int, quick: bool) -> dict[str, Any]:
    import gzip

    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.nn import functional as F
    from torchvision import transforms

    torch.manual_seed(seed)

    class Digits(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        """Images through Pillow and transforms one by one, as torchvision's MNIST does."""

        def __init__(self, part: str) -> None:
            pixels = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
            labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
            self.pixels = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
            self.labels = np.frombuffer(labels, np.uint8, offset=8)
            self.transform = transforms.Compose(
                [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
            )

        def __len__(self) -> int:
            return 640 if quick else len(self.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    train = torch.utils.data.DataLoader(Digits("train"), batch_size=64, shuffle=True)
    test = torch.utils.data.DataLoader(Digits("t10k"), batch_size=1000)
    for _ in range(1 if quick else 14):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        scheduler.step()
        if hits / len(test.dataset) >= GOAL:  # type: ignore[arg-type]
            break
    return {"seconds": time.time() - _started()}


def _started() -> float:
    import psutil

    return psutil.Process().create_time()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(_test(Path(sys.argv[1]), Path(sys.argv[2]))))
    elif len(sys.argv) == 4:
        print(json.dumps(_peer(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")))
    else:
        main("mnist", measure)
