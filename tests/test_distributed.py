"""Two processes train the model that one process trains with batches of twice the size."""

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


def train(folder: Path, data: Path, size: int, *launcher: str) -> dict[str, torch.Tensor]:
    stage = ("-m", "stages.train_cnn", f"data={data}", f"output={folder}/m")
    done = run(
        ROOT, sys.executable, *launcher, *stage, f"curve={folder}/c.csv", *COMMON,
        "training.epochs=2", f"training.batch_size={size}", DVC_ROOT=str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2/2") == 1
    assert not list(folder.glob(".checkpoints/*/*"))
    return load_file(folder / "m" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, data):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    together = train(tmp_path / "two", data, 16, *torchrun)
    alone = train(tmp_path / "one", data, 32)
    for name, weights in alone.items():
        torch.testing.assert_close(together[name], weights, rtol=1e-4, atol=1e-6)
