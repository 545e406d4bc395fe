"""Two processes train the model that one process trains with batches of twice the size."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, run

COMMON = ("tracking=off", "cnn=simple", "augment=null", "device=cpu", "precision=fp32", "threads=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "image"
    prepare = ("stages.prepare", "modality=image", "profile=tiny", "tracking=off")
    done = run(ROOT, sys.executable, "-m", *prepare, f"output={folder}")
    assert done.returncode == 0, done.stderr
    return folder


Trained = tuple[dict[str, torch.Tensor], list[float]]


def train(
    folder: Path, data: Path, size: int, *launcher: str, more: tuple[str, ...] = ()
) -> Trained:
    """Weights, and the training loss of each epoch."""
    stage = ("-m", "stages.train_cnn", f"data={data}", f"output={folder}/m")
    done = run(
        ROOT, sys.executable, *launcher, *stage, f"curve={folder}/c.csv", *COMMON,
        "training.epochs=2", f"training.batch_size={size}", *more, DVC_ROOT=str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2/2") == 1
    assert not list(folder.glob(".checkpoints/*/*"))
    with (folder / "c.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    return load_file(folder / "m" / "model.safetensors"), losses


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, data):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    weights, losses = train(tmp_path / "one", data, 32)
    together = train(tmp_path / "two", data, 16, *torchrun)
    # also where each step has two batches, and a state is saved whenever losses are exchanged
    often = ("training.accumulate=2", "training.save_minutes=0.0001", "training.log_every=1")
    gathered = train(tmp_path / "four", data, 8, *torchrun, more=often)
    for found, curve in (together, gathered):
        assert curve == pytest.approx(losses, rel=1e-4)
        for name, expected in weights.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
