"""Row 1: the full MNIST to 99 % test accuracy, against pytorch/examples' mnist/main.py.

`--mnist-program` names that script, which is run as it is. Without it its like stands in, written
here after it: two convolutions, two linear layers, dropout, Adadelta with learning rate 1 and a
factor of 0.7 an epoch, batches of 64 from a DataLoader over Pillow images, in the files' order as
on a CPU. The clock starts with the process and stops at the first epoch that ends at 99.0 %.
"""

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import (
    Failed,
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

RECIPE = (
    "cnn.depth=1", "cnn.channels=[16,48,96]", "cnn.dropout=0.0", "training.epochs=1",
    "training.batch_size=128", "training.label_smoothing=0.0", "optimizer.lr=0.02",
    "augment.degrees=8", "augment.translate=0.06", "augment.scale=0.08",
)  # fmt: skip
GOAL = 0.99


def measure(quick: bool) -> list[Row]:
    """Three seeds of ours, tracking and checkpoints on; the peer's seeds beside them."""
    source, program = mnist(), os.environ.get("MNIST_PROGRAM")
    if source is None:
        return [no_mnist(1, "full MNIST to 99.0 %, time against pytorch/examples", "≤ 0.083 ×")]
    cap = ["profile=tiny"] if quick else []
    with scratch() as folder:
        data = prepare(
            folder, "image", "image=mnist", f"image.folder={source}", "image.validation=0.02", *cap
        )
        ours: list[tuple[float, float]] = []
        peer: list[list[tuple[float, float]]] = []
        for seed in range(1 if quick else 3):
            ours.append(_ours(folder, data, seed, *cap))
            if program:
                peer.append(_script(Path(program).resolve(), folder, Path(source), seed, quick))
            else:
                found = answer("bench.mnist", "peer", source, str(seed), str(int(quick)))
                peer.append(found["curve"])
    shares = [seconds / curve[-1][0] for (seconds, _), curve in zip(ours, peer, strict=True)]
    accuracy = [100 * found for _, found in ours]
    whose = "mnist/main.py" if program else "our like of mnist/main.py (no --mnist-program)"
    what = (
        f"full MNIST to 99.0 %: {statistics.median(s for s, _ in ours):.1f} s, of the "
        f"{statistics.median(curve[-1][0] for curve in peer):.0f} s of pytorch/examples, {whose}"
    )
    return [
        at_most(
            1, what, 1 / 12, shares, kind="accuracy", title="Full MNIST",
            curves={"train_cnn": [[one] for one in ours], "pytorch/examples": peer},
        ),
        at_least(
            1, f"its test accuracy, mean of seeds ({min(accuracy):.2f} – {max(accuracy):.2f})",
            99.0, [statistics.mean(accuracy)], "%",
        ),
    ]  # fmt: skip


def _ours(folder: Path, data: Path, seed: int, *more: str) -> tuple[float, float]:
    weights = folder / f"model{seed}"
    seconds = stage(
        folder, "train_cnn", f"data={data}", f"output={weights}", f"curve={folder}/c.csv",
        f"seed={seed}", *RECIPE, *more,
    )  # fmt: skip
    return seconds, answer("bench.mnist", "test", str(weights), str(data))["accuracy"]


def _test(weights: Path, data: Path) -> dict[str, Any]:
    import torch

    from pipeline.training import net as nets

    net = nets.load(weights)
    device = torch.device("cpu")
    test = net.task.data.load(data, "test", net, batch_size=1000, device=device)
    with torch.inference_mode():
        hits = sum(
            int((net.module(**one.inputs).argmax(1) == one.targets).sum()) for one in test.epoch(0)
        )
    return {"accuracy": hits / test.examples}


def _script(
    program: Path, folder: Path, source: Path, seed: int, quick: bool
) -> list[tuple[float, float]]:
    """Seconds and test accuracy at the end of each epoch of the script; it reads ../data."""
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    (folder / "program").mkdir(exist_ok=True)
    words = [sys.executable, "-u", str(program), "--seed", str(seed), "--epochs", "14"]
    words += ["--dry-run"] if quick else []
    curve: list[tuple[float, float]] = []
    started = time.perf_counter()
    with subprocess.Popen(
        words, cwd=folder / "program", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"Accuracy: (\d+)/(\d+)", line):
                accuracy = int(found[1]) / int(found[2])
                curve.append((time.perf_counter() - started, accuracy))
                if accuracy >= GOAL or quick:
                    process.kill()
                    break
    if not curve:
        raise Failed(f"{program} printed no test accuracy; is it pytorch/examples' mnist/main.py?")
    return curve


def _peer(source: Path, seed: int, quick: bool) -> dict[str, Any]:
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

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, 10),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    train = torch.utils.data.DataLoader(Digits("train"), batch_size=64)
    test = torch.utils.data.DataLoader(Digits("t10k"), batch_size=1000)
    curve = []
    for _ in range(1 if quick else 14):
        model.train()
        for number, (images, labels) in enumerate(train):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            if number % 10 == 0:
                print(f"Loss: {loss.item():.6f}")
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in test)
        scheduler.step()
        accuracy = hits / len(test.dataset)  # type: ignore[arg-type]
        curve.append((time.time() - _started(), accuracy))
        if accuracy >= GOAL:
            break
    return {"curve": curve}


def _started() -> float:
    import psutil

    return psutil.Process().create_time()


if __name__ == "__main__":
    given = sys.argv[2:]
    if sys.argv[1:2] == ["test"]:
        print(json.dumps(_test(Path(given[0]), Path(given[1]))))
    elif sys.argv[1:2] == ["peer"]:
        print(json.dumps(_peer(Path(given[0]), int(given[1]), given[2] == "1")))
    else:
        main("mnist", measure)
