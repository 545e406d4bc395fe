"""On a GPU: no step waits for the device."""

import pytest
import torch
from torch import nn

from pipeline.data.augment import affine
from pipeline.data.batches import Batches, Ragged
from pipeline.hardware import configure
from pipeline.models import cnn, rnn
from pipeline.settings import Augment
from pipeline.training import _Loop
from tests.models.presets import preset
from tests.test_training import OPTIMIZER, STAGE, TRAINING

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def images(device: torch.device) -> tuple[nn.Module, Batches]:
    pixels = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, device=device)
    model = cnn.build(
        preset("cnn", "convnet"), channels=1, height=28, width=28, classes=4, mean=[0.1], std=[0.3]
    )

    def collate(index):
        return {"images": pixels[index.to(device, non_blocking=True)]}

    labels = torch.arange(64, device=device) % 4
    augment = affine(Augment(degrees=10, translate=0.1, scale=0.1, flip=True))
    return model, Batches(labels, collate, 8, shuffle=True, augment=augment)


def clips(device: torch.device) -> tuple[nn.Module, Batches]:
    lengths = torch.arange(2000, 2064)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ragged = Ragged(torch.randint(-999, 999, (int(offsets[-1]),), device=device), offsets)

    def collate(index):
        samples, sizes = ragged.pad(index)
        return {"waveforms": samples.float().div_(32768), "lengths": sizes}

    model = rnn.build(preset("rnn", "gru"), sample_rate=8000, classes=4)
    labels = torch.arange(64, device=device) % 4
    return model, Batches(labels, collate, 8, shuffle=True, lengths=lengths)


@pytest.mark.parametrize("make", [images, clips])
def test_a_step_does_not_wait_for_the_device(make):
    from pipeline.checkpoint import Checkpoints

    hardware = configure(STAGE.model_copy(update={"device": "cuda", "precision": "auto"}))
    model, batches = make(hardware.device)
    nowhere = Checkpoints(None)  # type: ignore[arg-type]
    loop = _Loop(
        model, batches, TRAINING, OPTIMIZER, hardware, 0, nowhere, lambda metrics, step: None, None
    )
    epoch = batches.epoch(0)
    loop.step(epoch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [loop.step(epoch) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()
